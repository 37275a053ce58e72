"""Keys of a file x keys of a module -> Reparametrizations: one parameter in two styles.

torch has two sets of keys each for weight and spectral normalisation, pruning adds keys of its own,
and old LayerNorms named their parameters gamma and beta.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from ckptool.compare.parametrization.parametrization_styles import (
    PARAMETRIZATION_CLASSES,
    Conversion,
    ParametrizationStyle,
    StyledParameter,
    find_conversion,
)
from ckptool.model import ModuleInfo, StateDict, TensorInfo

_KEY_TEMPLATES: Final[Mapping[ParametrizationStyle, tuple[str, ...]]] = {
    ParametrizationStyle.PLAIN: ("{}",),
    ParametrizationStyle.OLD_WEIGHT_NORM: ("{}_g", "{}_v"),
    ParametrizationStyle.NEW_WEIGHT_NORM: (
        "parametrizations.{}.original0",
        "parametrizations.{}.original1",
    ),
    ParametrizationStyle.OLD_SPECTRAL_NORM: ("{}_orig", "{}_u", "{}_v"),
    ParametrizationStyle.NEW_SPECTRAL_NORM: (
        "parametrizations.{}.original",
        "parametrizations.{}.0._u",
        "parametrizations.{}.0._v",
    ),
    ParametrizationStyle.PRUNED: ("{}_orig", "{}_mask"),
}
"""Key templates of the tensors that each style saves; equivalent styles have the same order."""
_EQUIVALENT_STYLES: Final = (
    {ParametrizationStyle.OLD_WEIGHT_NORM, ParametrizationStyle.NEW_WEIGHT_NORM},
    {ParametrizationStyle.OLD_SPECTRAL_NORM, ParametrizationStyle.NEW_SPECTRAL_NORM},
)
"""Styles that compute the same from the same tensors: only the keys differ."""
_SUFFIXES: Final = ("_g", "_v", "_orig", "_u", "_mask")


class Reparametrization(Struct, frozen=True):
    """A parameter stored in different styles by the file and the module."""

    parameter: str
    """Key of the plain parameter ("conv.weight"), which need not exist on either side."""
    file_style: ParametrizationStyle
    module_style: ParametrizationStyle
    file_keys: tuple[str, ...]
    module_keys: tuple[str, ...]
    renames: Mapping[str, str]
    """Key in the file -> key in the module if only the keys differ; else empty."""
    handled_by_torch_hook: bool
    """Whether torch's load hook of the module accepts the file's keys."""
    conversion: Conversion
    """How the module's tensors are computed from the file's, or why they cannot be."""


def find_reparametrizations(
    expected: Mapping[str, TensorInfo], state: StateDict, module: ModuleInfo
) -> tuple[Reparametrization, ...]:
    """Return the parameters that both sides have, in different styles.

    Args:
        expected: what the module saves.
        state: what the file holds.
        module: the module.
    """
    actual = state.tensors
    unexpected = _possible_owners(key for key in actual if key not in expected)
    common_owners = [
        owner
        for owner in _possible_owners(k for k in expected if k not in actual)
        if owner in unexpected
    ]
    if not common_owners:
        return ()
    in_file = _StyleDetector(actual, dict.fromkeys(state.versions or (), ""))
    in_module = _StyleDetector(expected, {key: cls.name for key, cls in module.modules.items()})
    candidates = (
        (owner, in_file.detect(owner), in_module.detect(owner)) for owner in common_owners
    )
    return tuple(
        _build_reparametrization(owner, file_parameter, module_parameter, module)
        for owner, file_parameter, module_parameter in candidates
        if file_parameter is not None
        and module_parameter is not None
        and file_parameter.style is not module_parameter.style
    )


_ParameterOwner = tuple[str, str]
"""(prefix of a module with its trailing dot, name of a parameter)."""


def _possible_owners(keys: Iterable[str]) -> dict[_ParameterOwner, None]:
    """Return the (module prefix, parameter name) that each key could belong to, in order."""
    owners: dict[_ParameterOwner, None] = {}
    for key in keys:
        owner, separator, remainder = f".{key}".rpartition(".parametrizations.")
        if separator and "." in remainder:
            owners[f"{owner}."[1:], remainder.split(".", 1)[0]] = None
            continue
        dot = key.rfind(".") + 1
        prefix, name = key[:dot], key[dot:]
        stem = next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), name)
        owners[prefix, stem] = None
    return owners


def _group_parametrized_keys(
    tensors: Mapping[str, TensorInfo],
) -> dict[_ParameterOwner, tuple[str, ...]]:
    """Return (module prefix, parameter name) -> keys, for parametrised parameters."""
    keys_by_owner: dict[_ParameterOwner, tuple[str, ...]] = {}
    for key in tensors:
        if "parametrizations." in key:
            for owner in _possible_owners([key]):
                keys_by_owner[owner] = (*keys_by_owner.get(owner, ()), key)
    return keys_by_owner


def _build_reparametrization(
    owner: _ParameterOwner,
    in_file: StyledParameter,
    in_module: StyledParameter,
    module: ModuleInfo,
) -> Reparametrization:
    prefix, name = owner
    owner_class = module.modules.get(prefix.removesuffix("."))
    computed = owner_class.computed_parameters.get(name) if owner_class is not None else None
    is_equivalent = (
        {in_file.style, in_module.style} in _EQUIVALENT_STYLES
        and [tensor.shape for tensor in in_file.tensors]
        == [tensor.shape for tensor in in_module.tensors]
        and computed is not None
        and computed.by == PARAMETRIZATION_CLASSES[in_module.style]
    )
    pairs = zip(in_file.keys, in_module.keys, strict=False)
    return Reparametrization(
        parameter=f"{prefix}{name}",
        file_style=in_file.style,
        module_style=in_module.style,
        file_keys=in_file.keys,
        module_keys=in_module.keys,
        renames={old: new for old, new in pairs if old != new} if is_equivalent else {},
        handled_by_torch_hook=is_equivalent
        and in_module.style is ParametrizationStyle.NEW_WEIGHT_NORM,
        conversion=(
            Conversion()
            if is_equivalent
            else find_conversion(name, in_file, in_module, owner_class)
        ),
    )


class _StyleDetector:
    """Finds the style in which one side, file or module, keeps each of its parameters."""

    def __init__(self, tensors: Mapping[str, TensorInfo], members: Mapping[str, str]) -> None:
        """Args: the tensors by key; prefix of each known sub-module -> its class, "" if unknown."""
        self._tensors = tensors
        self._members = members
        self._parametrized_keys = _group_parametrized_keys(tensors)

    def detect(self, owner: _ParameterOwner) -> StyledParameter | None:
        """Return the parameter in the one style whose keys are all there; None if several are."""
        styled_keys = {
            style: _fill_templates(*owner, templates) for style, templates in _KEY_TEMPLATES.items()
        }
        complete = [
            self._get_parameter(style, keys)
            for style, keys in styled_keys.items()
            if all(key in self._tensors for key in keys)
        ]
        own_keys = self._parametrized_keys.get(owner)
        if len(complete) > 1:
            return None
        parameter = complete[0] if complete else None
        if own_keys is None or (parameter and self._is_known(owner, parameter, own_keys)):
            return parameter
        if parameter is not None and parameter.style is ParametrizationStyle.PLAIN:
            return None
        return self._get_parameter(ParametrizationStyle.PARAMETRISED, own_keys)

    def _get_parameter(self, style: ParametrizationStyle, keys: tuple[str, ...]) -> StyledParameter:
        return StyledParameter(style, keys, tuple(self._tensors[key] for key in keys))

    def _is_known(
        self, owner: _ParameterOwner, styled: StyledParameter, own_keys: tuple[str, ...]
    ) -> bool:
        """Return whether the parametrization is torch's, and the only one of its parameter."""
        prefix, name = owner
        first, second = (f"{prefix}parametrizations.{name}.{number}" for number in range(2))
        expected_class = PARAMETRIZATION_CLASSES.get(styled.style)
        return (
            set(own_keys) == set(styled.keys)
            and second not in self._members
            and self._members.get(first, "") in ("", expected_class)
        )


def _fill_templates(prefix: str, name: str, templates: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{prefix}{template.format(name)}" for template in templates)


GAMMA_BETA_NAMES: Final = {"gamma": "weight", "beta": "bias"}
"""Old name of a LayerNorm's parameter -> its name in torch."""


def find_gamma_beta_renames(
    missing: Mapping[str, TensorInfo],
    unexpected: Mapping[str, TensorInfo],
    classes: Mapping[str, str],
) -> dict[str, str]:
    """Return missing key -> unexpected key for LayerNorms with parameters gamma and beta.

    Other modules may have a parameter gamma (LayerScale), so the owner's class is checked.
    """
    pairs: dict[str, str] = {}
    for old, tensor in unexpected.items():
        owner, _, name = old.rpartition(".")
        new = f"{owner}.{GAMMA_BETA_NAMES[name]}".lstrip(".") if name in GAMMA_BETA_NAMES else ""
        is_layer_norm = classes.get(owner, "").endswith("LayerNorm")
        if is_layer_norm and new in missing and missing[new].shape == tensor.shape:
            pairs[new] = old
    return pairs

"""Keys of a file x keys of a module -> Reparametrizations: one parameter in two styles.

torch has two sets of keys each for weight and spectral normalisation, pruning adds keys of its own,
and old LayerNorms named their parameters gamma and beta.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from ckptool.model import TensorInfo


class ParametrizationStyle(StrEnum):
    """How a module stores a parameter: plain, or computed from other tensors."""

    PLAIN = "a plain parameter"
    OLD_WEIGHT_NORM = "torch.nn.utils.weight_norm"
    NEW_WEIGHT_NORM = "torch.nn.utils.parametrizations.weight_norm"
    OLD_SPECTRAL_NORM = "torch.nn.utils.spectral_norm"
    NEW_SPECTRAL_NORM = "torch.nn.utils.parametrizations.spectral_norm"
    PRUNED = "torch.nn.utils.prune"
    PARAMETRISED = "torch.nn.utils.parametrize"


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
_WEIGHT_NORM_CLASS: Final = "torch.nn.utils.parametrizations._WeightNorm"


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


def find_reparametrizations(
    expected: Mapping[str, TensorInfo],
    actual: Mapping[str, TensorInfo],
    classes: Mapping[str, str],
) -> tuple[Reparametrization, ...]:
    """Return the parameters that both sides have, in different styles.

    Args:
        expected: what the module saves.
        actual: what the file holds.
        classes: prefix of a sub-module -> the qualified name of its class.
    """
    unexpected = _possible_owners(key for key in actual if key not in expected)
    common_owners = [
        owner
        for owner in _possible_owners(k for k in expected if k not in actual)
        if owner in unexpected
    ]
    names_by_owner = (
        (_group_parametrized_keys(actual), _group_parametrized_keys(expected))
        if common_owners
        else ({}, {})
    )
    result: list[Reparametrization] = []
    for owner in common_owners:
        in_file = _detect_style(owner, actual, names_by_owner[0])
        in_module = _detect_style(owner, expected, names_by_owner[1])
        if in_file is not None and in_module is not None and in_file.style is not in_module.style:
            result.append(
                _build_reparametrization(owner, in_file, in_module, expected, actual, classes)
            )
    return tuple(result)


_ParameterOwner = tuple[str, str]
"""(prefix of a module with its trailing dot, name of a parameter)."""


class _StyledParameter(Struct, frozen=True):
    style: ParametrizationStyle
    keys: tuple[str, ...]


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
    in_file: _StyledParameter,
    in_module: _StyledParameter,
    expected: Mapping[str, TensorInfo],
    actual: Mapping[str, TensorInfo],
    classes: Mapping[str, str],
) -> Reparametrization:
    prefix, name = owner
    pairs = dict(zip(in_file.keys, in_module.keys, strict=False))
    is_equivalent = {in_file.style, in_module.style} in _EQUIVALENT_STYLES and all(
        actual[old].shape == expected[new].shape for old, new in pairs.items()
    )
    has_hook = classes.get(f"{prefix}parametrizations.{name}.0") == _WEIGHT_NORM_CLASS
    return Reparametrization(
        parameter=f"{prefix}{name}",
        file_style=in_file.style,
        module_style=in_module.style,
        file_keys=in_file.keys,
        module_keys=in_module.keys,
        renames={old: new for old, new in pairs.items() if old != new} if is_equivalent else {},
        handled_by_torch_hook=is_equivalent
        and in_file.style is ParametrizationStyle.OLD_WEIGHT_NORM
        and has_hook,
    )


def _detect_style(
    owner: _ParameterOwner,
    tensors: Mapping[str, TensorInfo],
    names_by_owner: Mapping[_ParameterOwner, tuple[str, ...]],
) -> _StyledParameter | None:
    """Return the style whose keys are all present, with most keys if several; None if none."""
    candidates = [
        _StyledParameter(style, _fill_templates(*owner, templates))
        for style, templates in _KEY_TEMPLATES.items()
    ]
    complete = [
        candidate for candidate in candidates if all(key in tensors for key in candidate.keys)
    ]
    if any(candidate.style is not ParametrizationStyle.PLAIN for candidate in complete):
        return max(complete, key=lambda candidate: len(candidate.keys))
    if owner in names_by_owner:
        return _StyledParameter(ParametrizationStyle.PARAMETRISED, names_by_owner[owner])
    return complete[0] if complete else None


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

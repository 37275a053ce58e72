"""Keys of a file x keys of a module -> Reparametrizations: one parameter in two styles.

torch has two sets of keys each for weight and spectral normalisation, pruning adds keys of its own,
and old LayerNorms named their parameters gamma and beta.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from ckptool.model import TensorInfo


class Style(StrEnum):
    """How a module stores a parameter: plain, or computed from other tensors."""

    PLAIN = "a plain parameter"
    OLD_WEIGHT_NORM = "torch.nn.utils.weight_norm"
    NEW_WEIGHT_NORM = "torch.nn.utils.parametrizations.weight_norm"
    OLD_SPECTRAL_NORM = "torch.nn.utils.spectral_norm"
    NEW_SPECTRAL_NORM = "torch.nn.utils.parametrizations.spectral_norm"
    PRUNED = "torch.nn.utils.prune"
    PARAMETRISED = "torch.nn.utils.parametrize"


_PARTS: Final[Mapping[Style, tuple[str, ...]]] = {
    Style.PLAIN: ("{}",),
    Style.OLD_WEIGHT_NORM: ("{}_g", "{}_v"),
    Style.NEW_WEIGHT_NORM: ("parametrizations.{}.original0", "parametrizations.{}.original1"),
    Style.OLD_SPECTRAL_NORM: ("{}_orig", "{}_u", "{}_v"),
    Style.NEW_SPECTRAL_NORM: (
        "parametrizations.{}.original",
        "parametrizations.{}.0._u",
        "parametrizations.{}.0._v",
    ),
    Style.PRUNED: ("{}_orig", "{}_mask"),
}
"""Key templates of the tensors that each style saves; equivalent styles have the same order."""
_PAIRS: Final = (
    {Style.OLD_WEIGHT_NORM, Style.NEW_WEIGHT_NORM},
    {Style.OLD_SPECTRAL_NORM, Style.NEW_SPECTRAL_NORM},
)
"""Styles that compute the same from the same tensors: only the keys differ."""
_SUFFIXES: Final = ("_g", "_v", "_orig", "_u", "_mask")
_WEIGHT_NORM: Final = "torch.nn.utils.parametrizations._WeightNorm"


class Restyle(Struct, frozen=True):
    """A parameter stored in different styles by the file and the module."""

    parameter: str
    """Key of the plain parameter ("conv.weight"), which need not exist on either side."""
    have: Style
    want: Style
    file_keys: tuple[str, ...]
    module_keys: tuple[str, ...]
    renames: Mapping[str, str]
    """Key in the file -> key in the module if only the keys differ; else empty."""
    bridged: bool
    """Whether torch's load hook of the module accepts the file's keys."""


def find_restyles(
    expected: Mapping[str, TensorInfo],
    actual: Mapping[str, TensorInfo],
    classes: Mapping[str, str],
) -> tuple[Restyle, ...]:
    """Return the parameters that both sides have, in different styles.

    Args:
        expected: what the module saves.
        actual: what the file holds.
        classes: prefix of a sub-module -> the qualified name of its class.
    """
    unexpected = _owners(key for key in actual if key not in expected)
    both = [one for one in _owners(k for k in expected if k not in actual) if one in unexpected]
    wrapped = (_parametrised(actual), _parametrised(expected)) if both else ({}, {})
    found: list[Restyle] = []
    for one in both:
        have = _style(one, actual, wrapped[0])
        want = _style(one, expected, wrapped[1])
        if have is not None and want is not None and have.style is not want.style:
            found.append(_restyle(one, have, want, expected, actual, classes))
    return tuple(found)


_Owner = tuple[str, str]
"""(prefix of a module with its trailing dot, name of a parameter)."""


class _Kept(Struct, frozen=True):
    style: Style
    keys: tuple[str, ...]


def _owners(keys: Iterable[str]) -> dict[_Owner, None]:
    """Return the (module prefix, parameter name) that each key could belong to, in order."""
    found: dict[_Owner, None] = {}
    for key in keys:
        owner, marked, rest = f".{key}".rpartition(".parametrizations.")
        if marked and "." in rest:
            found[f"{owner}."[1:], rest.split(".", 1)[0]] = None
            continue
        dot = key.rfind(".") + 1
        prefix, name = key[:dot], key[dot:]
        stem = next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), name)
        found[prefix, stem] = None
    return found


def _parametrised(tensors: Mapping[str, TensorInfo]) -> dict[_Owner, tuple[str, ...]]:
    """Return (module prefix, parameter name) -> keys, for parametrised parameters."""
    found: dict[_Owner, tuple[str, ...]] = {}
    for key in tensors:
        if "parametrizations." in key:
            for owner in _owners([key]):
                found[owner] = (*found.get(owner, ()), key)
    return found


def _restyle(
    one: _Owner,
    have: _Kept,
    want: _Kept,
    expected: Mapping[str, TensorInfo],
    actual: Mapping[str, TensorInfo],
    classes: Mapping[str, str],
) -> Restyle:
    prefix, name = one
    pairs = dict(zip(have.keys, want.keys, strict=False))
    same = {have.style, want.style} in _PAIRS and all(
        actual[old].shape == expected[new].shape for old, new in pairs.items()
    )
    hook = classes.get(f"{prefix}parametrizations.{name}.0") == _WEIGHT_NORM
    return Restyle(
        parameter=f"{prefix}{name}",
        have=have.style,
        want=want.style,
        file_keys=have.keys,
        module_keys=want.keys,
        renames={old: new for old, new in pairs.items() if old != new} if same else {},
        bridged=same and have.style is Style.OLD_WEIGHT_NORM and hook,
    )


def _style(
    one: _Owner, tensors: Mapping[str, TensorInfo], wrapped: Mapping[_Owner, tuple[str, ...]]
) -> _Kept | None:
    """Return the style whose keys are all present, with most keys if several; None if none."""
    found = [_Kept(style, _keys(*one, parts)) for style, parts in _PARTS.items()]
    complete = [kept for kept in found if all(key in tensors for key in kept.keys)]
    if any(kept.style is not Style.PLAIN for kept in complete):
        return max(complete, key=lambda kept: len(kept.keys))
    if one in wrapped:
        return _Kept(Style.PARAMETRISED, wrapped[one])
    return complete[0] if complete else None


def _keys(prefix: str, name: str, parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{prefix}{part.format(name)}" for part in parts)


_OLD_NAMES: Final = {"gamma": "weight", "beta": "bias"}


def find_old_norms(
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
        new = f"{owner}.{_OLD_NAMES[name]}".lstrip(".") if name in _OLD_NAMES else ""
        norm = classes.get(owner, "").endswith("LayerNorm")
        if norm and new in missing and missing[new].shape == tensor.shape:
            pairs[new] = old
    return pairs

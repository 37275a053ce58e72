"""Keys of a file x keys of a module -> one parameter that the two keep in different forms.

torch has two sets of names for weight and spectral normalisation, pruning has a third, and old
LayerNorms called their parameters gamma and beta.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from ckptool.model import TensorInfo


class Style(StrEnum):
    """How a module keeps a parameter that is computed from others."""

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
"""The names of what each style saves, in an order that two styles of one computation share."""
_PAIRS: Final = (
    {Style.OLD_WEIGHT_NORM, Style.NEW_WEIGHT_NORM},
    {Style.OLD_SPECTRAL_NORM, Style.NEW_SPECTRAL_NORM},
)
"""Styles that compute the same from the same tensors: only the names differ."""
_SUFFIXES: Final = ("_g", "_v", "_orig", "_u", "_mask")
_WEIGHT_NORM: Final = "torch.nn.utils.parametrizations._WeightNorm"


class Restyle(Struct, frozen=True):
    """A parameter that file and module keep in different styles."""

    parameter: str
    """"conv.weight", whether there is such a key or not."""
    have: Style
    want: Style
    file_keys: tuple[str, ...]
    module_keys: tuple[str, ...]
    renames: Mapping[str, str]
    """Key in the file -> key in the module, where nothing but names differs; else empty."""
    bridged: bool
    """Whether the module's own loading hook takes the file's names."""


def find_restyles(
    expected: Mapping[str, TensorInfo],
    actual: Mapping[str, TensorInfo],
    classes: Mapping[str, str],
) -> tuple[Restyle, ...]:
    """Return the parameters that both sides have, each in a style of its own.

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
"""A module's prefix, with its dot, and the name of a parameter."""


class _Kept(Struct, frozen=True):
    style: Style
    keys: tuple[str, ...]


def _owners(keys: Iterable[str]) -> dict[_Owner, None]:
    """Return the (owner's prefix, parameter) that each key could belong to, in order."""
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
    """Return the keys of each parameter that has parametrisations."""
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
    """Return the style of which all parts are there: of several, the one with most parts."""
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
    """Return missing key -> unexpected key for LayerNorms that called them gamma and beta.

    Other modules have a gamma of their own (LayerScale): the owner's class decides.
    """
    pairs: dict[str, str] = {}
    for old, tensor in unexpected.items():
        owner, _, name = old.rpartition(".")
        new = f"{owner}.{_OLD_NAMES[name]}".lstrip(".") if name in _OLD_NAMES else ""
        norm = classes.get(owner, "").endswith("LayerNorm")
        if norm and new in missing and missing[new].shape == tensor.shape:
            pairs[new] = old
    return pairs

"""Requirements of two names of one file (a link and its target) -> the stricter of each."""

from collections.abc import Callable
from typing import Final, TypeVar

from ckptool.config import DeviceChoice, ReleaseRequirements, parse_size

T = TypeVar("T")

_DEVICES: Final[tuple[DeviceChoice, ...]] = ("cpu", "simulated", "auto", "cuda")
"""Devices of a verification, the least demanding first; None means "cuda"."""


def combine_requirements(
    first: ReleaseRequirements, second: ReleaseRequirements
) -> ReleaseRequirements:
    """Return requirements that a release meets only if it meets both."""
    return ReleaseRequirements(
        strict=_merge_values(first.strict, second.strict, _require_either_strict),
        coverage=_merge_values(first.coverage, second.coverage, max),
        dtypes=_merge_values(first.dtypes, second.dtypes, _intersect),
        max_size=_merge_values(first.max_size, second.max_size, _choose_smaller),
        safetensors=_merge_values(first.safetensors, second.safetensors, lambda a, b: a or b),
        globals=None
        if first.globals is second.globals is None
        else _intersect(first.globals or (), second.globals or ()),
        verify=_merge_values(
            first.verify, second.verify, lambda a, b: tuple(dict.fromkeys((*a, *b)))
        ),
        device=_choose_device(first, second),
    )


def _merge_values(first: T | None, second: T | None, combine: Callable[[T, T], T]) -> T | None:
    if first is None or second is None:
        return second if first is None else first
    return combine(first, second)


def _require_either_strict(first: bool, second: bool) -> bool:  # noqa: FBT001 (two of one kind)
    return first or second


def _intersect(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in first if name in second)


def _choose_smaller(first: str, second: str) -> str:
    return first if parse_size(first) <= parse_size(second) else second


def _choose_device(first: ReleaseRequirements, second: ReleaseRequirements) -> DeviceChoice | None:
    """Return the more demanding device of those that have a level to verify."""
    devices: list[DeviceChoice] = [
        require.device or "cuda" for require in (first, second) if require.verify
    ]
    return max(devices, key=_DEVICES.index) if devices else first.device or second.device

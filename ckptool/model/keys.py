"""Keys of a state_dict: joined, and in natural order."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final


def join_key(prefix: str, name: str) -> str:
    """Return "prefix.name", or `name` if `prefix` is ""."""
    return f"{prefix}.{name}" if prefix else name


def collect_last_segments(keys: Iterable[str]) -> frozenset[str]:
    """Return what stands after the last dot of each key: few names, of however many keys."""
    return frozenset({key.rpartition(".")[2] for key in keys})


def to_dotted_key(path: str) -> str:
    """Return `path` as a state_dict key: `layers[0].bias` -> `layers.0.bias`."""
    return _INDEX_STEP.sub(r".\1", path)


_INDEX_STEP: Final = re.compile(r"\[['\"]?(\w+)['\"]?\]")


def natural_sort_key(key: str) -> tuple[object, ...]:
    """Sort key that puts layer 2 before layer 10."""
    return tuple(map(_rank_piece, filter(None, _DIGITS.split(key))))


_DIGITS: Final = re.compile(r"([0-9]+)")


@lru_cache(maxsize=4096)
def _rank_piece(piece: str) -> tuple[object, ...]:
    """Return the sort key of a number, or of the text between numbers; few of them are new."""
    if piece[0] not in "0123456789":
        return (1, 0, piece, "")
    number = piece.lstrip("0")
    return (0, len(number), number, piece)

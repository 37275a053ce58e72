"""Keys -> KeySubtrees: the whole subtrees and layer-number patterns that a list of keys covers."""

import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from ckptool.model import natural_sort_key

_LAYER_NUMBER: Final = re.compile(r"(?<![^.])\d+(?![^.])")
"""A segment of digits."""


class KeySubtree(Struct, frozen=True):
    """Keys that one pattern covers: a subtree, the same key of several layers, or one key."""

    pattern: str
    """`encoder.*`, `layers.*.bias`, or the key itself. `*` stands for every key."""
    keys: tuple[str, ...]


def find_subtrees(keys: Iterable[str], universe: Iterable[str]) -> tuple[KeySubtree, ...]:
    """Group `keys` by the largest prefixes below which `universe` has no other key.

    Args:
        keys: the keys to group.
        universe: all keys of the file or module that they are part of.

    Returns:
        The groups in natural order. Subtrees and keys that differ in layer numbers only are one.
    """
    selected = dict.fromkeys(keys)
    open_prefixes = _list_prefixes(key for key in universe if key not in selected)
    keys_by_pattern: dict[str, list[str]] = {}
    for key in sorted(selected, key=natural_sort_key):
        pattern = mask_layer_numbers(_find_root_pattern(key, open_prefixes))
        keys_by_pattern.setdefault(pattern, []).append(key)
    return tuple(
        KeySubtree(pattern if len(group) > 1 else group[0], tuple(group))
        for pattern, group in keys_by_pattern.items()
    )


def mask_layer_numbers(key: str) -> str:
    """Return `key` with `*` for segments of digits: "layers.3.bias" gives "layers.*.bias"."""
    return _LAYER_NUMBER.sub("*", key)


def _list_prefixes(keys: Iterable[str]) -> set[str]:
    """Return all proper prefixes of `keys`, "" included if there is any key."""
    prefixes: set[str] = set()
    for key in keys:
        prefix = key
        while prefix and prefix not in prefixes:
            prefixes.add(prefix)
            prefix = prefix.rpartition(".")[0]
        prefixes.add("")
    return prefixes


def _find_root_pattern(key: str, open_prefixes: set[str]) -> str:
    """Return `PREFIX.*` for the shortest prefix of `key` that is not in `open_prefixes`."""
    if "" not in open_prefixes:
        return "*"
    segments = key.split(".")
    for length in range(1, len(segments)):
        prefix = ".".join(segments[:length])
        if prefix not in open_prefixes:
            return f"{prefix}.*"
    return key

"""Format sizes and keys as short text."""

import re
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")


def format_size(nbytes: int) -> str:
    """Format bytes in B, KiB or MiB; no larger units, so that columns compare at a glance."""
    if nbytes < 1 << 10:
        return f"{nbytes} B"
    if nbytes < 1 << 20:
        return f"{nbytes / (1 << 10):.1f} KiB"
    return f"{nbytes / (1 << 20):,.1f} MiB"


def truncate_middle(text: str, width: int) -> str:
    """Replace the middle of `text` by "..." if it is longer than `width` characters."""
    if len(text) <= width:
        return text
    if width <= 5:
        return text[:width]
    tail = (width - 3) * 2 // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


_LAYER_NUMBER: Final = re.compile(r"(?<![^.\[])[0-9]+(?![^.\]])")


def replace_layer_numbers(key: str) -> str:
    """Replace layer numbers by "*": "layers.3.bias" gives "layers.*.bias"."""
    return _LAYER_NUMBER.sub("*", key)


class FoldedItems(Struct, Generic[T], frozen=True):
    """Items whose keys differ in layer numbers only."""

    key: str
    items: tuple[T, ...]


def fold_by_pattern(items: Iterable[tuple[str, object, T]]) -> list[FoldedItems[T]]:
    """Group (key, attributes, item) by key without layer numbers and by attributes.

    The order is that of first appearance; a group of one item keeps its key.
    """
    groups: dict[object, tuple[str, list[T]]] = {}
    for key, attributes, item in items:
        group_key = (_LAYER_NUMBER.sub("*", key), attributes)
        entry = groups.get(group_key)
        if entry is None:
            groups[group_key] = key, [item]
        else:
            entry[1].append(item)
    return [
        FoldedItems(replace_layer_numbers(key) if len(members) > 1 else key, tuple(members))
        for key, members in groups.values()
    ]

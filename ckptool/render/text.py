"""Format sizes, counts and keys as short text that is safe to print."""

import re
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    """Escape unprintable characters: control characters, bidi marks, surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    number = ord(character)
    return (
        f"\\x{number:02x}"
        if number < 0x100
        else f"\\u{number:04x}"
        if number < 0x10000
        else f"\\U{number:08x}"
    )


def size(nbytes: int) -> str:
    """Format bytes in B, KiB or MiB; no larger units, so that columns compare at a glance."""
    if nbytes < 1 << 10:
        return f"{nbytes} B"
    if nbytes < 1 << 20:
        return f"{nbytes / (1 << 10):.1f} KiB"
    return f"{nbytes / (1 << 20):,.1f} MiB"


def count(number: int, noun: str) -> str:
    """Format a count and its noun: "1 key", "2 keys", "1,000 keys"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def cut(text: str, width: int) -> str:
    """Replace the middle of `text` by "..." if it is longer than `width` characters."""
    if len(text) <= width:
        return text
    if width <= 5:
        return text[:width]
    tail = (width - 3) * 2 // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


_NUMBER: Final = re.compile(r"(?<![^.\[])[0-9]+(?![^.\]])")


def pattern(key: str) -> str:
    """Replace layer numbers by "*": "layers.3.bias" gives "layers.*.bias"."""
    return _NUMBER.sub("*", key)


class Folded(Struct, Generic[T], frozen=True):
    """Items whose keys differ in layer numbers only."""

    key: str
    items: tuple[T, ...]


def fold(items: Iterable[tuple[str, object, T]]) -> list[Folded[T]]:
    """Group (key, attributes, item) by key without layer numbers and by attributes.

    The order is that of first appearance; a group of one item keeps its key.
    """
    groups: dict[object, tuple[str, list[T]]] = {}
    for key, form, item in items:
        group = (_NUMBER.sub("*", key), form)
        found = groups.get(group)
        if found is None:
            groups[group] = key, [item]
        else:
            found[1].append(item)
    return [
        Folded(pattern(key) if len(group) > 1 else key, tuple(group))
        for key, group in groups.values()
    ]

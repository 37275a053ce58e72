"""Containers of a pickle -> named children, and their places, of bounded length."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ckptool.formats.pickle.nodes import (
    SEQUENCE_TYPES,
    MappingNode,
    SetNode,
    UnresolvedObject,
)
from ckptool.formats.pickle.numpy_arrays import is_numpy_array
from ckptool.formats.pickle.plain_values import format_key

MAX_PLACE_CHARS: Final = 500
_KEPT_CHARS: Final = 200
"""Characters kept of the start and of the end of a place that is cut."""


class PlaceJoiner:
    """Joins the places of one file; those above `MAX_PLACE_CHARS` are cut and stay distinct.

    A file of n bytes can nest n / 4 dicts under one memoised key of n / 2 characters, so that whole
    places would take n * n characters.
    """

    def __init__(self) -> None:
        self.cut_count = 0
        """Number of places that were cut."""

    def join(self, place: str, key: str, separator: str = ".") -> str:
        """Return place + separator + key; in a long one "...[cut N]..." stands for its middle.

        N counts the cut places of the file, in the order in which they are met.
        """
        length = len(place) + len(separator) + len(key)
        if length <= MAX_PLACE_CHARS:
            return f"{place}{separator}{key}"
        self.cut_count += 1
        head = f"{place[:_KEPT_CHARS]}{separator}{key[:_KEPT_CHARS]}"[:_KEPT_CHARS]
        tail = f"{place[-_KEPT_CHARS:]}{separator}{key[-_KEPT_CHARS:]}"[-_KEPT_CHARS:]
        return f"{head}...[cut {self.cut_count}]...{tail}"


class KeyDeduplicator:
    """Makes keys of one dict unique that are the same text: 1 and "1", two tuples of two."""

    def __init__(self, *mappings: Mapping[str, Any]) -> None:
        self._mappings = mappings
        self._counts: Counter[str] = Counter()

    def __call__(self, key: str) -> str:
        """Return key + "'", or with a number after it if that is used as well."""
        unique_key = key
        while any(unique_key in mapping for mapping in self._mappings):
            self._counts[key] += 1
            count = self._counts[key]
            unique_key = f"{key}'{count if count > 1 else ''}"
        return unique_key


CONTAINER_TYPES: Final = SEQUENCE_TYPES | {dict, MappingNode, SetNode, UnresolvedObject}


def iter_children(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield (key as text, child) of a container; nothing for a numpy array."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield (key if type(key) is str else format_key(key)), child
    elif type(node) in SEQUENCE_TYPES:
        yield from ((str(index), child) for index, child in enumerate(node))
    elif type(node) is SetNode:
        yield from ((str(index), child) for index, child in enumerate(node.items))
    elif type(node) is UnresolvedObject and not is_numpy_array(node):
        yield from _iter_object_parts(node)


def _iter_object_parts(node: UnresolvedObject) -> Iterator[tuple[str, Any]]:
    """Yield the items, attributes and arguments of an UnresolvedObject."""
    yield from iter_children(node.pairs or {})
    yield from iter_children(node.items or [])
    states = node.state if type(node.state) is tuple else (node.state,)
    for state in states:
        if isinstance(state, dict):
            yield from iter_children(state)
        elif type(state) in CONTAINER_TYPES:
            yield "state", state
    yield from ((str(n), part) for n, part in enumerate(node.args) if type(part) in CONTAINER_TYPES)
    if isinstance(node.kwargs, dict):
        yield from iter_children(node.kwargs)

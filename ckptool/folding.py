"""Many keys -> few names: keys that differ in layer numbers, and sub-trees of keys."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")

_LAYER_NUMBER: Final = re.compile(r"[0-9](?<![^.\[].)[0-9]*(?![^.\]])")
"""A whole segment, or an index in brackets. The digit stands first: re searches for it faster."""
_ANY_NUMBER: Final = re.compile(r"[0-9]+")
_MAX_RANGES: Final = 4
"""Maximum ranges of numbers in the name of a group."""
_MAX_DEPTH: Final = 8
"""Maximum segments of the name of a sub-tree."""


class FoldedItems(Struct, Generic[T], frozen=True):
    """Items whose keys differ in layer numbers only, or that are in one sub-tree."""

    key: str
    """Name that no other group has."""
    pattern: str
    """Key with "*" for layer numbers."""
    items: tuple[T, ...]


def replace_layer_numbers(key: str) -> str:
    """Replace layer numbers by "*": "layers.3.bias" gives "layers.*.bias"."""
    return _LAYER_NUMBER.sub("*", key)


def fold_names(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the names of groups of keys that differ in layer numbers only, in their order."""
    return tuple(group.key for group in fold_by_pattern((key, "", key) for key in keys))


def fold_by_pattern(items: Iterable[tuple[str, object, T]]) -> list[FoldedItems[T]]:
    """Group (key, attributes, item) by key without layer numbers and by attributes.

    The order is that of first appearance; a group of one item keeps its key. Groups that only
    differ in attributes have the numbers in their names: "layers.0-3,7.bias".
    """
    groups: dict[object, tuple[list[str], list[T]]] = {}
    replace_numbers = _LAYER_NUMBER.sub
    for key, attributes, item in items:
        # A literal "*" is no number: such a key is a group by itself.
        pattern = "" if "*" in key else replace_numbers("*", key)
        group_key = (pattern or key, not pattern, attributes)
        group = groups.get(group_key)
        if group is None:
            group = groups[group_key] = ([], [])
        group[0].append(key)
        group[1].append(item)
    names = _name_groups([keys for keys, _ in groups.values()])
    return [
        FoldedItems(name, replace_layer_numbers(keys[0]), tuple(members))
        for name, (keys, members) in zip(names, groups.values(), strict=True)
    ]


def _name_groups(groups: list[list[str]]) -> Iterator[str]:
    """Yield a name for each group of keys; no two groups of several keys have the same.

    The numbers in which groups of one pattern differ stay: first those that are the same in all
    keys of a group ("blocks.*.mlp.0.bias", "blocks.*.mlp.2.bias"), then ranges.
    """
    patterns = [replace_layer_numbers(keys[0]) for keys in groups]
    counts = Counter(p for p, keys in zip(patterns, groups, strict=True) if len(keys) > 1)
    choices = [
        (pattern, *(form(keys) for form in (_format_varying, _format_ranges)))
        if len(keys) > 1 and counts[pattern] > 1
        else (pattern,)
        for pattern, keys in zip(patterns, groups, strict=True)
    ]
    name_counts = Counter(name for names in choices for name in {*names})
    for keys, names in zip(groups, choices, strict=True):
        if len(keys) == 1:
            yield keys[0]
        elif len(names) == 1:
            yield names[0]
        else:
            unique_names = (name for name in names if name and name_counts[name] == 1)
            yield next(unique_names, f"{keys[0]} and {len(keys) - 1:,} more")


def _format_varying(keys: list[str]) -> str:
    """Return the pattern of `keys` with the numbers that all of them have."""
    columns = zip(*map(_LAYER_NUMBER.findall, keys), strict=True)
    texts = iter([column[0] if len({*column}) == 1 else "*" for column in columns])
    return _LAYER_NUMBER.sub(lambda _: next(texts), keys[0])


def _format_ranges(keys: list[str]) -> str:
    """Return the pattern of `keys` with their numbers: "layers.0-3,7.bias"; "" if too long."""
    numbers = [list(map(int, _LAYER_NUMBER.findall(key))) for key in keys]
    if any(len(number) > 18 for key in keys for number in _LAYER_NUMBER.findall(key)):
        return ""
    texts = [_join_ranges(sorted(set(column))) for column in zip(*numbers, strict=True)]
    if not all(texts):
        return ""
    remaining = iter(texts)
    return _LAYER_NUMBER.sub(lambda _: next(remaining), keys[0])


def _join_ranges(numbers: list[int]) -> str:
    """Return ascending numbers as "0-3,7"; "" if they are more than a few ranges."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    if len(ranges) > _MAX_RANGES:
        return ""
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def name_like(group: FoldedItems[T], key: str) -> str:
    """Return another key of the group's items, of which `key` is the first, as it is named."""
    return replace_layer_numbers(key) if len(group.items) > 1 else key


def fold_by_subtree(
    groups: Iterable[FoldedItems[T]], max_count: int
) -> list[tuple[FoldedItems[T], bool]]:
    """Join groups of one sub-tree, "encoder.layers.*.attn.*", until about `max_count` are left.

    The deepest sub-trees that are few enough are taken, then those of names that differ in numbers
    ("block*.conv*"); at the least, those of the first segment.

    Returns:
        each group, and whether it is a sub-tree; the others are as they were.
    """
    group_list = list(groups)
    if len(group_list) <= max_count:
        return [(group, False) for group in group_list]
    subtrees: dict[str, list[FoldedItems[T]]] = {}
    for name, group in zip(_name_subtrees(group_list, max_count), group_list, strict=True):
        subtrees.setdefault(name, []).append(group)
    return [
        (members[0], False)
        if len(members) == 1
        else (
            FoldedItems(name, name, tuple(item for group in members for item in group.items)),
            True,
        )
        for name, members in subtrees.items()
    ]


def _name_subtrees(groups: Sequence[FoldedItems[Any]], max_count: int) -> list[str]:
    """Return for each group the name of its sub-tree, of which there are at most `max_count`."""
    paths = [group.pattern.split(".", _MAX_DEPTH) for group in groups]
    max_depth = min(_MAX_DEPTH, max(map(len, paths), default=0))
    for min_depth, pattern_paths in (
        (2, paths),
        (1, [[_ANY_NUMBER.sub("*", segment) for segment in path] for path in paths]),
    ):
        for depth in range(max_depth, min_depth - 1, -1):
            names = [_name_subtree(path, depth) for path in pattern_paths]
            if len(set(names)) <= max_count:
                return names
    return [_name_subtree(path, 1) for path in paths]


def _name_subtree(path: list[str], depth: int) -> str:
    name = ".".join(path[:depth])
    return name if len(path) <= depth or name.endswith(".*") else f"{name}.*"

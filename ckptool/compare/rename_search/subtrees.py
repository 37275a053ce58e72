"""Keys below one prefix of the file that are those below another of the module -> RenameLinks."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ckptool.compare.rename_search.links import (
    MAX_CANDIDATES,
    LinkKind,
    RenameLink,
    Segments,
    Tensors,
    mask_layers,
)
from ckptool.model import natural_sort_key

_MIN_SHARE: Final = 0.5
"""Share of a subtree's tensors that must have their counterpart, in the smaller of the two."""
_NEARLY_AS_WELL: Final = 0.9
"""Share of the best candidate's tensors with which another candidate fits as well."""

SubtreeMove = tuple[Segments, Segments]
"""Prefix in the file, prefix in the module; `*` for numbers."""
_KeysByNumbers = dict[tuple[str, ...], str]


def find_moved_subtrees(
    missing: Tensors, unexpected: Tensors, *, keeps_constants: bool
) -> Iterator[tuple[RenameLink, SubtreeMove]]:
    """Yield the subtrees whose keys and shapes below one prefix are those below another.

    Not all need be: half of the smaller subtree is enough, if no other fits nearly as well.

    Args:
        missing: tensors of the module.
        unexpected: tensors of the file.
        keeps_constants: whether a number that is the same in all layers (`block.*.layer.0`) is part
            of the prefix, else any number is one that both sides have.
    """
    search = _SubtreeSearch(missing, unexpected, keeps_constants=keeps_constants)
    yield from search.find_links()


class _SubtreeSearch:
    """Key patterns of both sides, and how many tensors each pair of prefixes explains."""

    def __init__(self, missing: Tensors, unexpected: Tensors, *, keeps_constants: bool) -> None:
        self._missing, self._unexpected = missing, unexpected
        self._file, self._module = _group_by_pattern(unexpected), _group_by_pattern(missing)
        if keeps_constants:
            self._file, self._module = _keep_constants(self._file), _keep_constants(self._module)
        self._file_below, self._module_below = (
            _index_prefixes(self._file),
            _index_prefixes(self._module),
        )
        self._used_keys: set[str] = set()
        self._used_module_keys: set[str] = set()

    def find_links(self) -> Iterator[tuple[RenameLink, SubtreeMove]]:
        """Yield the moves that most keys of a subtree follow, those of many keys first.

        A move that explains nearly as many of the same keys is a rival, and makes both ambiguous.
        """
        all_pairs = {move: self._pair_keys(move) for move in self._propose_moves()}
        counts = {move: len(pairs) for move, pairs in all_pairs.items()}
        by_side: dict[object, list[SubtreeMove]] = defaultdict(list)
        for move in counts:
            by_side["file", move[0]].append(move)
            by_side["module", move[1]].append(move)
        settled: set[Segments] = set()
        order = sorted(counts, key=lambda move: (-counts[move], *map(_sort_segments, move)))
        for move in order:
            pairs = self._pair_keys(move)
            size = min(
                self._count_keys(self._file_below, self._file, move[0]),
                self._count_keys(self._module_below, self._module, move[1]),
            )
            if not pairs or len(pairs) < _MIN_SHARE * size:
                continue
            rivals = [
                other
                for side, prefix in (("file", move[0]), ("module", move[1]))
                for other in by_side[side, prefix]
                if other != move
                and counts[other] >= _NEARLY_AS_WELL * counts[move]
                and _count_common(all_pairs[other], all_pairs[move], side)
                >= _NEARLY_AS_WELL * counts[move]
                and not settled & {("file", *other[0]), ("module", *other[1])}
            ]
            self._used_keys.update(pairs)
            self._used_module_keys.update(pairs.values())
            if not rivals:
                settled |= {("file", *move[0]), ("module", *move[1])}
            alternatives = [
                f"{'.'.join(other[1] if other[0] == move[0] else other[0])}.*" for other in rivals
            ]
            old, new = (".".join((*prefix, "*")) for prefix in move)
            detail = "" if len(pairs) == size else f"of {size}"
            yield RenameLink(old, new, pairs, LinkKind.SUBTREE, detail, tuple(alternatives)), move

    def _propose_moves(self) -> Iterator[SubtreeMove]:
        """Yield the prefixes that the longest common ends of keys suggest, most frequent first."""
        ends: dict[Segments, list[Segments]] = {}
        for pattern in self._module:
            for start in range(len(pattern) - 1):
                patterns = ends.setdefault(pattern[start:], [])
                if len(patterns) <= MAX_CANDIDATES:
                    patterns.append(pattern)
        votes: Counter[SubtreeMove] = Counter()
        for pattern in self._file:
            for start in range(len(pattern) - 1):
                end = pattern[start:]
                if set(end[:-1]) == {"*"}:
                    break
                moves = [
                    _trim_move(pattern, other, len(end))
                    for other in ends.get(end, ())
                    if other != pattern and self._match_keys(pattern, other)
                ]
                if moves:
                    votes.update(moves[:MAX_CANDIDATES])
                    break
        kept: Counter[object] = Counter()
        for move, _ in votes.most_common():
            kept[move[0]] += 1
            if kept[move[0]] <= MAX_CANDIDATES:
                yield move

    def _match_keys(self, old: Segments, new: Segments) -> dict[str, str]:
        """Return the unused keys of one pattern that have a counterpart of the other."""
        module_keys = self._module.get(new, {})
        return {
            key: module_keys[numbers]
            for numbers, key in self._file[old].items()
            if numbers in module_keys
            and self._unexpected[key].shape == self._missing[module_keys[numbers]].shape
            and key not in self._used_keys
            and module_keys[numbers] not in self._used_module_keys
        }

    def _pair_keys(self, move: SubtreeMove) -> dict[str, str]:
        old_prefix, new_prefix = move
        pairs: dict[str, str] = {}
        for pattern in self._file_below.get(old_prefix, ()):
            pairs |= self._match_keys(pattern, (*new_prefix, *pattern[len(old_prefix) :]))
        return pairs

    def _count_keys(
        self,
        patterns_below: Mapping[Segments, list[Segments]],
        keys: Mapping[Segments, _KeysByNumbers],
        prefix: Segments,
    ) -> int:
        return sum(len(keys[pattern]) for pattern in patterns_below[prefix])


def _count_common(first: Mapping[str, str], second: Mapping[str, str], side: str) -> int:
    """Return the number of keys of one side ("file" or "module") that both mappings have."""
    if side == "file":
        return len(first.keys() & second.keys())
    return len({*first.values()}.intersection(second.values()))


def _trim_move(old: Segments, new: Segments, end_length: int) -> SubtreeMove:
    """Return what stands before the common end, with one segment of it if that is nothing."""
    old_length, new_length = len(old) - end_length, len(new) - end_length
    extra = 0 if old_length and new_length else 1
    return old[: old_length + extra], new[: new_length + extra]


def _sort_segments(segments: Segments) -> object:
    return len(segments), natural_sort_key(".".join(segments))


def _group_by_pattern(keys: Iterable[str]) -> dict[Segments, _KeysByNumbers]:
    groups: dict[Segments, _KeysByNumbers] = {}
    for key in keys:
        pattern, numbers = mask_layers(key)
        groups.setdefault(pattern, {})[numbers] = key
    return groups


def _keep_constants(groups: Mapping[Segments, _KeysByNumbers]) -> dict[Segments, _KeysByNumbers]:
    """Return the patterns with the numbers that are the same in all keys, if others are not."""
    result: dict[Segments, _KeysByNumbers] = {}
    for pattern, keys in groups.items():
        columns = [{*column} for column in zip(*keys, strict=True)]
        is_varying = [len(column) > 1 for column in columns]
        if all(is_varying) or not any(is_varying):
            is_varying = [True for _ in columns]
        texts = iter(
            "*" if varies else min(column)
            for varies, column in zip(is_varying, columns, strict=True)
        )
        new_pattern = tuple(next(texts) if segment == "*" else segment for segment in pattern)
        new_keys = {
            tuple(n for n, varies in zip(numbers, is_varying, strict=True) if varies): key
            for numbers, key in keys.items()
        }
        result.setdefault(new_pattern, {}).update(new_keys)
    return result


def _index_prefixes(patterns: Iterable[Segments]) -> dict[Segments, list[Segments]]:
    index: dict[Segments, list[Segments]] = {}
    for pattern in patterns:
        for length in range(1, len(pattern)):
            index.setdefault(pattern[:length], []).append(pattern)
    return index

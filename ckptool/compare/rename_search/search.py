"""Keys of a file x keys of a module -> RenameGroups: what changes of the code renamed."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final

from msgspec.structs import replace

from ckptool.compare.rename_search.alike import SQUARE, is_square, match_modules, match_parameters
from ckptool.compare.rename_search.key_patterns import is_pattern
from ckptool.compare.rename_search.links import (
    LinkKind,
    RenameContext,
    RenameLink,
    Tensors,
    mask_layers,
)
from ckptool.compare.rename_search.names import pair_normalized_names
from ckptool.compare.rename_search.rename_groups import RenameGroup, build_group, join_links
from ckptool.compare.rename_search.renumbering import find_moved_layers, find_renumbered_layers
from ckptool.compare.rename_search.subtrees import SubtreeMove, find_moved_subtrees
from ckptool.model import TensorInfo, natural_sort_key, tied_keys

_STEPS: Final[Sequence[Callable[[RenameContext], Iterator[RenameLink]]]] = (
    pair_normalized_names,
    find_moved_layers,
    lambda context: match_modules(context, in_place=True, transposed=False),
    lambda context: match_modules(context, in_place=True, transposed=True),
    lambda context: match_parameters(context, same_name=True, transposed=False),
    lambda context: match_parameters(context, same_name=True, transposed=True),
    lambda context: match_modules(context, in_place=False, transposed=False),
    lambda context: match_parameters(context, same_name=False, transposed=False),
    lambda context: match_parameters(context, same_name=False, transposed=True),
)
"""Steps of the search, the strongest evidence first."""


def find_rename_groups(
    missing: Tensors, unexpected: Tensors, expected: Tensors, actual: Tensors
) -> tuple[RenameGroup, ...]:
    """Return the renames that explain missing and unexpected keys, in order of their old keys.

    A key of the file, and a key of the module, is in at most one group. Keys that read as a pattern
    (a literal `*`, numbers in braces) are left out: no pattern would name them alone. Pairs have
    the same shape, or are transposed. The work grows with the number of keys, not with pairs of
    keys.

    Args:
        missing: what the module expects and the file lacks, as far as nothing else explains it.
        unexpected: what the file has and the module lacks, likewise.
        expected: all tensors that the module expects.
        actual: all tensors of the file.
    """
    mismatched = {
        key: tensor
        for key, tensor in expected.items()
        if key in actual and actual[key].shape != tensor.shape
    }
    missing, unexpected, mismatched = map(_drop_patterns, (missing, unexpected, mismatched))
    if not (unexpected or mismatched) or not (missing or mismatched):
        return ()
    groups = _search_groups(missing, unexpected, expected, actual, mismatched)
    surplus = {
        *_find_surplus_names(groups, missing, expected, is_old=False),
        *_find_surplus_names(groups, unexpected, actual, is_old=True),
    }
    if not surplus:
        return groups
    missing, unexpected = (_without(tensors, surplus) for tensors in (missing, unexpected))
    return _search_groups(missing, unexpected, expected, actual, mismatched)


def _find_surplus_names(
    groups: Iterable[RenameGroup], open_tensors: Tensors, all_tensors: Tensors, *, is_old: bool
) -> Iterator[str]:
    """Yield names of tied tensors beyond those that the other side has, where it is unclear which.

    A file that stores a tied tensor once has a counterpart for one of its names. Which of them is
    renamed makes no difference: they are one tensor.
    """
    pairs = [
        (old if is_old else new, group.is_unambiguous)
        for group in groups
        for old, new in group.pairs.items()
    ]
    is_clear = dict(pairs)
    for tie in tied_keys(all_tensors.values()):
        names = [key for key in tie if key in open_tensors]
        paired = [key for key in names if key in is_clear]
        if 0 < len(paired) < len(names) and not all(is_clear[key] for key in paired):
            yield from names[len(paired) :]


def _without(tensors: Tensors, keys: Collection[str]) -> dict[str, TensorInfo]:
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


def _search_groups(
    missing: Tensors,
    unexpected: Tensors,
    expected: Tensors,
    actual: Tensors,
    mismatched: Tensors,
) -> tuple[RenameGroup, ...]:
    search = _RenameSearch(missing, unexpected, expected, actual)
    search.take(
        find_renumbered_layers(
            {**missing, **mismatched},
            {**unexpected, **{key: actual[key] for key in mismatched}},
            expected,
            actual,
        )
    )
    for keeps_constants in (False, True):
        search.take_moves(
            find_moved_subtrees(search.missing, search.unexpected, keeps_constants=keeps_constants)
        )
    for find_links in _STEPS:
        if search.missing and search.unexpected:
            search.take(find_links(search.build_context()))
    links = _doubt_squares(search.links, unexpected)
    groups = [build_group(joined) for joined in join_links(links)]
    return tuple(sorted(groups, key=lambda group: natural_sort_key(next(iter(group.pairs)))))


def _drop_patterns(tensors: Tensors) -> dict[str, TensorInfo]:
    return {key: tensor for key, tensor in tensors.items() if not is_pattern(key)}


def find_plain_groups(removed: Tensors, added: Tensors) -> tuple[RenameGroup, ...]:
    """Return the renames that are unambiguous, of tensors of the same shape."""
    groups = find_rename_groups(added, removed, added, removed)
    return tuple(g for g in groups if g.is_unambiguous and not g.transposed_keys)


class _RenameSearch:
    """The links so far, and the keys that are left."""

    def __init__(
        self, missing: Tensors, unexpected: Tensors, expected: Tensors, actual: Tensors
    ) -> None:
        self.links: list[RenameLink] = []
        self.missing, self.unexpected = {**missing}, {**unexpected}
        self._expected_keys, self._file_keys = [*expected], [*actual]
        self._moves: dict[tuple[str, ...], tuple[str, ...]] = {}

    def take(self, links: Iterable[RenameLink]) -> None:
        """Keep the links, as far as their keys are free."""
        for link in [*links]:
            pairs = link.pairs
            if not link.is_complete:
                pairs = {
                    a: b for a, b in pairs.items() if a in self.unexpected and b in self.missing
                }
            if not pairs:
                continue
            self.links.append(replace(link, pairs=pairs))
            for old, new in pairs.items():
                self.unexpected.pop(old, None)
                self.missing.pop(new, None)

    def take_moves(self, moves: Iterable[tuple[RenameLink, SubtreeMove]]) -> None:
        """Keep the links, and take their prefixes for renamed from now on."""
        for link, (old_prefix, new_prefix) in [*moves]:
            self._moves.setdefault(old_prefix, new_prefix)
            self.take([link])

    def build_context(self) -> RenameContext:
        """Return what is left, under the names that the moved subtrees have in the module."""
        places = {key: self._find_place(key) for key in self.unexpected}
        return RenameContext(self.missing, self.unexpected, places, self._shared_prefixes)

    @cached_property
    def _shared_prefixes(self) -> frozenset[str]:
        """Prefixes of keys of both sides, after the subtrees have moved."""
        renamed = {old: new for link in self.links for old, new in link.pairs.items()}
        file_keys = (
            renamed.get(key) or (self._find_place(key) if key in self.unexpected else key)
            for key in self._file_keys
        )
        return frozenset(_list_prefixes(file_keys) & _list_prefixes(self._expected_keys))

    def _find_place(self, key: str) -> str:
        """Return the key with the longest prefix that moved in its new place."""
        if not self._moves:
            return key
        segments, numbers = mask_layers(key)
        for length in range(len(segments) - 1, 0, -1):
            new_prefix = self._moves.get(segments[:length])
            if new_prefix is not None:
                remaining = iter(numbers)
                new_segments = (*new_prefix, *segments[length:])
                return ".".join(
                    next(remaining, "*") if segment == "*" else segment for segment in new_segments
                )
        return key


def _list_prefixes(keys: Iterable[str]) -> set[str]:
    prefixes: set[str] = set()
    for key in keys:
        end = key.rfind(".")
        while end > 0 and key[:end] not in prefixes:
            prefixes.add(key[:end])
            end = key.rfind(".", 0, end)
    return prefixes


def _doubt_squares(links: Iterable[RenameLink], unexpected: Tensors) -> Iterator[RenameLink]:
    """Yield the links; square matrices are ambiguous where tensors of their name are transposed."""
    links = [*links]
    names = {key.rpartition(".")[2] for link in links for key in link.transposed_keys}
    for link in links:
        squares = [
            key
            for key in link.pairs
            if link.kind in {LinkKind.MODULE, LinkKind.PARAMETER}
            and is_square(unexpected[key].shape)
            and (key.rpartition(".")[2] in names or link.kind is LinkKind.PARAMETER)
        ]
        if squares and not link.alternatives:
            link = replace(link, alternatives=(SQUARE,))  # noqa: PLW2901
        yield link

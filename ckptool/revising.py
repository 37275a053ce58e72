"""Old x new Checkpoint -> CheckpointDiff: structure, then planned value checks, then the result."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeVar, assert_never

from msgspec import Struct

from ckptool import statistics, values
from ckptool.compare import (
    FILE_FIELDS,
    Change,
    Changed,
    Missing,
    Revision,
    Unexpected,
    all_tensors,
    compare,
    named_state,
    state_at,
)
from ckptool.elements import obstacle
from ckptool.matching import find_renames, pair_alike
from ckptool.model import Checkpoint, State, TensorInfo, ties
from ckptool.statistics import Figures, Tolerances
from ckptool.workers import Workers

_Fact = TypeVar("_Fact")
_PLAIN: Final = frozenset({"strided", "chunked"})
"""Layouts of dense tensors: they differ only in how the container stores the elements."""


class Outline(Struct, frozen=True):
    """Comparison of two checkpoints without the values of their tensors."""

    old: Checkpoint
    new: Checkpoint
    places: tuple[str, str]
    old_tensors: Mapping[str, TensorInfo]
    new_tensors: Mapping[str, TensorInfo]
    entries: tuple[str, ...]
    changes: tuple[Change, ...]
    by_name: Mapping[str, str]
    """Removed key -> added key with a similar name (`find_renames`)."""


class Both(Struct, frozen=True):
    """Check of a key in both files: compare the values, and measure how they differ."""

    key: str
    cast: bool = False
    """Whether the dtypes differ: then the values are measured without comparing the bytes."""


class Moved(Struct, frozen=True):
    """Check of removed and added keys of one dtype and shape: which are renames?"""

    removed: tuple[str, ...]
    added: tuple[str, ...]


class Tied(Struct, frozen=True):
    """Check of two keys, tied in the old file and separate in the new: are the values equal?"""

    key: str
    other: str


Question = Both | Moved | Tied


class Answers(Struct, frozen=True):
    """Results of some or all value checks. The field names are those of shard files."""

    equal: Mapping[str, bool] = {}
    """Key in both files -> whether the values are equal."""
    untold: Mapping[str, str] = {}
    """Key in both files -> why its values could not be compared."""
    renamed: Mapping[str, str] = {}
    """Removed key -> added key with the same values."""
    refuted: tuple[str, ...] = ()
    """Removed keys whose values differ from those of the added key with a similar name."""
    diverged: tuple[tuple[str, str], ...] = ()
    """Pairs of keys tied in the old file whose values differ in the new one."""
    measured: Mapping[str, Figures] = {}
    """Key in both files -> statistics of the difference of its values."""
    unmeasured: Mapping[str, str] = {}
    """Key in both files -> why its difference could not be measured."""


def outline(old: Checkpoint, new: Checkpoint, at: str | None) -> Outline:
    """Compare two checkpoints without reading values.

    With `at`, the state at `at` of both; else all states if both files have states at the same
    places; else the pair of states with most matching tensors.
    """
    places, old_tensors, new_tensors = _sides(old, new, at)
    return outlined(old, new, places, old_tensors, new_tensors, _changed_entries(old, new))


def outlined(
    old: Checkpoint,
    new: Checkpoint,
    places: tuple[str, str],
    old_tensors: Mapping[str, TensorInfo],
    new_tensors: Mapping[str, TensorInfo],
    entries: tuple[str, ...],
) -> Outline:
    """Compare the tensors of two files by shape, dtype and layout, and find renames by key."""
    found = compare(old_tensors, new_tensors, FILE_FIELDS)
    changes = tuple(change for change in found if not _only_cut(change))
    by_name = find_renames(
        [c.expected for c in changes if isinstance(c, Missing)],
        [c.actual for c in changes if isinstance(c, Unexpected)],
    )
    return Outline(old, new, places, old_tensors, new_tensors, entries, changes, by_name)


def questions(known: Outline) -> tuple[Question, ...]:
    """Return the value checks for a diff; they are independent of each other."""
    return (*_both(known), *_moved(known), *_ties(known))


def weight(known: Outline, question: Question) -> int:
    """Return the number of bytes that a check reads of each file."""
    match question:
        case Both(key):
            return known.old_tensors[key].nbytes
        case Moved(removed, added):
            sizes = [known.old_tensors[key].nbytes for key in removed]
            return (sum(sizes) + sum(known.new_tensors[key].nbytes for key in added)) // 2
        case Tied(key):
            return known.new_tensors[key].nbytes
        case _:
            assert_never(question)


def answer(
    known: Outline, asked: Iterable[Question], tolerances: Tolerances, workers: Workers
) -> Answers:
    """Run value checks and return their results.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    together = tuple(asked)
    both = [q for q in together if isinstance(q, Both)]
    same, untold = _compared(known, [q.key for q in both if not q.cast], workers)
    renamed, refuted = _renames(known, [q for q in together if isinstance(q, Moved)], workers)
    tied = [(q.key, q.other) for q in together if isinstance(q, Tied)]
    pairs = ((known.new_tensors[key], known.new_tensors[other]) for key, other in tied)
    still = values.equal_many(pairs, workers=workers)
    differing = [q.key for q in both if q.cast or same.get(q.key) is False]
    measured, unmeasured = _measured(known, differing, tolerances, workers)
    return Answers(
        equal=same,
        untold=untold,
        renamed=renamed,
        refuted=refuted,
        diverged=tuple(keys for keys, equal in zip(tied, still, strict=True) if equal is False),
        measured=measured,
        unmeasured=unmeasured,
    )


def together(parts: Iterable[Answers]) -> Answers:
    """Merge the results of several shards."""
    known = tuple(parts)
    return Answers(
        equal={k: v for part in known for k, v in part.equal.items()},
        untold={k: v for part in known for k, v in part.untold.items()},
        renamed={k: v for part in known for k, v in part.renamed.items()},
        refuted=tuple(key for part in known for key in part.refuted),
        diverged=tuple(keys for part in known for keys in part.diverged),
        measured={k: v for part in known for k, v in part.measured.items()},
        unmeasured={k: v for part in known for k, v in part.unmeasured.items()},
    )


def unanswered(known: Outline, learnt: Answers) -> str:
    """Return the first key in both files without a result; "" if all have one."""
    told = learnt.equal.keys() | learnt.untold.keys()
    told |= learnt.measured.keys() | learnt.unmeasured.keys()
    return next((q.key for q in _both(known) if q.key not in told), "")


def revise(known: Outline, learnt: Answers | None, tolerances: Tolerances | None) -> Revision:
    """Build the CheckpointDiff from structure and value results; None: values were not read."""
    told = learnt or Answers()
    taken = {*told.refuted, *told.renamed, *told.renamed.values()}
    guessed = {a: b for a, b in known.by_name.items() if taken.isdisjoint((a, b))}
    renames = guessed | dict(told.renamed)
    both = [key for key in known.old_tensors if key in known.new_tensors]
    there = {key: n for n, key in enumerate(known.new_tensors)}
    apart = [keys for keys in told.diverged if there.keys() >= set(keys)]
    return Revision(
        old=known.old,
        new=known.new,
        old_tensors=known.old_tensors,
        new_tensors=known.new_tensors,
        places=known.places,
        changes=known.changes,
        renames=_ordered(renames, known.old_tensors),
        proved=frozenset(told.renamed),
        differing=None
        if learnt is None
        else tuple(key for key in known.old_tensors if learnt.equal.get(key) is False),
        untold=_ordered(told.untold, both),
        entries=known.entries,
        measured=_ordered(told.measured, both),
        unmeasured=_ordered(told.unmeasured, both),
        tolerances=tolerances,
        diverged=tuple(sorted(apart, key=lambda keys: [there[key] for key in keys])),
    )


def _ordered(facts: Mapping[str, _Fact], order: Iterable[str]) -> dict[str, _Fact]:
    return {key: facts[key] for key in order if key in facts}


def _only_cut(change: Change) -> bool:
    return (
        isinstance(change, Changed)
        and change.fields == {"layout"}
        and {change.expected.layout, change.actual.layout} <= _PLAIN
    )


def _both(known: Outline) -> Iterator[Both]:
    changes = {c.key: c for c in known.changes}
    for key in known.old_tensors:
        change = changes.get(key)
        if change is None:
            yield Both(key)
        elif isinstance(change, Changed) and "shape" not in change.fields:
            yield Both(key, cast=True)


def _moved(known: Outline) -> Iterator[Moved]:
    forms: dict[object, tuple[list[str], list[str]]] = {}
    for change in known.changes:
        if isinstance(change, Changed):
            continue
        gone = isinstance(change, Missing)
        tensor = change.expected if isinstance(change, Missing) else change.actual
        sides = forms.setdefault((tensor.dtype, tensor.shape), ([], []))
        sides[0 if gone else 1].append(change.key)
    for removed, added in forms.values():
        if removed and added:
            yield Moved(tuple(removed), tuple(added))


def _ties(known: Outline) -> Iterator[Tied]:
    new = known.new_tensors
    still = {key: n for n, group in enumerate(ties(new.values())) for key in group}
    for group in ties(known.old_tensors.values()):
        first, *others = [key for key in group if key in new] or [""]
        for other in others:
            apart = first not in still or still[first] != still.get(other)
            if apart and _form(new[first]) == _form(new[other]):
                yield Tied(first, other)


def _form(tensor: TensorInfo) -> object:
    return tensor.dtype, tensor.shape


def _compared(
    known: Outline, keys: list[str], workers: Workers
) -> tuple[dict[str, bool], dict[str, str]]:
    pairs = [(known.old_tensors[key], known.new_tensors[key]) for key in keys]
    told = dict(zip(keys, values.equal_many(pairs, workers=workers), strict=True))
    untold = {
        key: obstacle(old) or obstacle(new) or "their parts are not the same"
        for (key, same), (old, new) in zip(told.items(), pairs, strict=True)
        if same is None
    }
    return {key: same for key, same in told.items() if same is not None}, untold


def _renames(
    known: Outline, groups: list[Moved], workers: Workers
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return (removed key -> added key with equal values, removed keys refuted by values).

    Pairs with similar names are tried first, then those with equal fingerprints.
    """
    removed = [key for group in groups for key in group.removed]
    added = {key for group in groups for key in group.added}
    candidates = ((a, known.by_name.get(a)) for a in removed)
    named = {a: b for a, b in candidates if b in added and _same_form(known, a, b)}
    pairs = [(known.old_tensors[a], known.new_tensors[b]) for a, b in named.items()]
    told = dict(zip(named, values.equal_many(pairs, workers=workers), strict=True))
    renamed = {a: named[a] for a, same in told.items() if same}
    used = set(renamed.values())
    for group in groups:
        left = [key for key in group.removed if key not in renamed]
        free = [key for key in group.added if key not in used]
        if left and free:
            renamed |= _alike(known, left, free, workers)
    return renamed, tuple(a for a, same in told.items() if same is False)


def _same_form(known: Outline, removed: str, added: str) -> bool:
    return _form(known.old_tensors[removed]) == _form(known.new_tensors[added])


def _alike(
    known: Outline, removed: list[str], added: list[str], workers: Workers
) -> Iterator[tuple[str, str]]:
    tensors = [known.old_tensors[key] for key in removed]
    tensors += [known.new_tensors[key] for key in added]
    prints = values.fingerprint_many(tensors, workers=workers)
    before = zip(removed, prints[: len(removed)], strict=True)
    after = zip(added, prints[len(removed) :], strict=True)
    return pair_alike({k: p for k, p in before if p}, {k: p for k, p in after if p})


def _measured(
    known: Outline, keys: list[str], tolerances: Tolerances, workers: Workers
) -> tuple[dict[str, Figures], dict[str, str]]:
    pairs = {key: (known.old_tensors[key], known.new_tensors[key]) for key in keys}
    hard = {key: why for key, pair in pairs.items() if (why := statistics.obstacle(*pair))}
    plain = {key: pair for key, pair in pairs.items() if key not in hard}
    figures = statistics.measure_many(plain.values(), tolerances, workers)
    return dict(zip(plain, figures, strict=True)), hard


def _sides(
    old: Checkpoint, new: Checkpoint, at: str | None
) -> tuple[tuple[str, str], Mapping[str, TensorInfo], Mapping[str, TensorInfo]]:
    if at is not None:
        before, after = state_at(old, at).tensors, state_at(new, at).tensors
        if not (before or after):
            named_state(old, at)  # raises: two missing states are an error, not equal
        return (at, at), before, after
    if [s.at for s in old.states] == [s.at for s in new.states] and len(old.states) != 1:
        return ("*", "*"), all_tensors(old), all_tensors(new)
    pairs = [(a, b) for a in old.states for b in new.states]
    if not pairs:
        return ("", ""), {}, {}
    a, b = max(pairs, key=lambda pair: _in_common(*pair))
    return (a.at, b.at), a.tensors, b.tensors


def _in_common(a: State, b: State) -> int:
    return sum(key in b.tensors and b.tensors[key].shape == t.shape for key, t in a.tensors.items())


def _changed_entries(old: Checkpoint, new: Checkpoint) -> tuple[str, ...]:
    """Return `at` of plain entries that differ; () if the containers differ."""
    if old.container != new.container:
        return ()
    before = {e.at: (e.text, e.value) for e in old.entries}
    after = {e.at: (e.text, e.value) for e in new.entries}
    places = dict.fromkeys((*before, *after))
    return tuple(place for place in places if not _same(before.get(place), after.get(place)))


def _same(before: object, after: object) -> bool:
    """Whether plain values are equal; NaN counts as equal to NaN."""
    return before == after or repr(before) == repr(after)

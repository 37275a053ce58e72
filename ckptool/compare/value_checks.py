"""StructuralDiff -> ValueChecks, independent units of work -> ValueResults."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import assert_never

from msgspec import Struct

from ckptool.compare.changes import (
    Changed,
    Missing,
)
from ckptool.compare.rename_search.key_patterns import mask_numbers
from ckptool.compare.renames import pair_by_fingerprint
from ckptool.compare.structural_diff import StructuralDiff
from ckptool.model import TensorInfo, tied_keys
from ckptool.values import difference, equality
from ckptool.values.batches.batch_runner import BatchRunner
from ckptool.values.difference import Tolerances, ValueDifference
from ckptool.values.elements import unreadable_reason
from ckptool.values.fingerprint_many import fingerprint_many
from ckptool.values.telling_values import has_telling_values


class SharedKey(Struct, frozen=True):
    """Check of a key in both files: compare the values, and measure how they differ."""

    key: str
    dtype_differs: bool = False
    """Whether the dtypes differ: then the values are measured without comparing the bytes."""


class RenameCandidates(Struct, frozen=True):
    """Check of removed and added keys of one dtype and shape: which are renames?"""

    removed: tuple[str, ...]
    added: tuple[str, ...]


class TieCheck(Struct, frozen=True):
    """Check of two keys, tied in the old file and separate in the new: are the values equal?"""

    key: str
    other_key: str


ValueCheck = SharedKey | RenameCandidates | TieCheck


class ValueResults(Struct, frozen=True):
    """Results of some or all value checks. The field names are those of shard files."""

    equal: Mapping[str, bool] = {}
    """Key in both files -> whether the values are equal."""
    uncompared: Mapping[str, str] = {}
    """Key in both files -> why its values could not be compared."""
    renamed: Mapping[str, str] = {}
    """Removed key -> added key with the same values."""
    possible: Mapping[str, str] = {}
    """Removed key -> added key with the same values, too few or too simple for a proof."""
    refuted: tuple[str, ...] = ()
    """Removed keys whose values differ from those of the added key with a similar name."""
    diverged: tuple[tuple[str, str], ...] = ()
    """Pairs of keys tied in the old file whose values differ in the new one."""
    measured: Mapping[str, ValueDifference] = {}
    """Key in both files -> statistics of the difference of its values."""
    unmeasured: Mapping[str, str] = {}
    """Key in both files -> why its difference could not be measured."""


def plan_value_checks(structure: StructuralDiff) -> tuple[ValueCheck, ...]:
    """Return the value checks for a diff; they are independent of each other."""
    return (
        *_iter_shared_keys(structure),
        *_iter_rename_candidates(structure),
        *_iter_tie_checks(structure),
    )


def count_read_nbytes(structure: StructuralDiff, check: ValueCheck) -> int:
    """Return the number of bytes that a check reads of each file."""
    match check:
        case SharedKey(key):
            return structure.old_tensors[key].nbytes
        case RenameCandidates(removed, added):
            sizes = [structure.old_tensors[key].nbytes for key in removed]
            return (sum(sizes) + sum(structure.new_tensors[key].nbytes for key in added)) // 2
        case TieCheck(key):
            return structure.new_tensors[key].nbytes
        case _:
            assert_never(check)


def run_value_checks(
    structure: StructuralDiff,
    checks: Iterable[ValueCheck],
    tolerances: Tolerances,
    runner: BatchRunner,
) -> ValueResults:
    """Run value checks and return their results.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    check_list = tuple(checks)
    shared_keys = [check for check in check_list if isinstance(check, SharedKey)]
    equal_by_key, uncompared_reasons = _compare_values(
        structure, [check.key for check in shared_keys if not check.dtype_differs], runner
    )
    proved_renames, possible_renames, refuted = _find_renames(
        structure, [check for check in check_list if isinstance(check, RenameCandidates)], runner
    )
    tie_pairs = [
        (check.key, check.other_key) for check in check_list if isinstance(check, TieCheck)
    ]
    pairs = (
        (structure.new_tensors[key], structure.new_tensors[other_key])
        for key, other_key in tie_pairs
    )
    tie_results = equality.equal_many(pairs, runner=runner)
    differing_keys = [
        check.key
        for check in shared_keys
        if check.dtype_differs or equal_by_key.get(check.key) is False
    ]
    differences, unmeasured_reasons = _measure_differences(
        structure, differing_keys, tolerances, runner
    )
    return ValueResults(
        equal=equal_by_key,
        uncompared=uncompared_reasons,
        renamed=proved_renames,
        possible=possible_renames,
        refuted=refuted,
        diverged=tuple(
            keys for keys, is_equal in zip(tie_pairs, tie_results, strict=True) if is_equal is False
        ),
        measured=differences,
        unmeasured=unmeasured_reasons,
    )


def merge_value_results(shard_results: Iterable[ValueResults]) -> ValueResults:
    """Merge the results of several shards."""
    result_list = tuple(shard_results)
    return ValueResults(
        equal={k: v for result in result_list for k, v in result.equal.items()},
        uncompared={k: v for result in result_list for k, v in result.uncompared.items()},
        renamed={k: v for result in result_list for k, v in result.renamed.items()},
        possible={k: v for result in result_list for k, v in result.possible.items()},
        refuted=tuple(key for result in result_list for key in result.refuted),
        diverged=tuple(keys for result in result_list for keys in result.diverged),
        measured={k: v for result in result_list for k, v in result.measured.items()},
        unmeasured={k: v for result in result_list for k, v in result.unmeasured.items()},
    )


def first_unchecked_key(structure: StructuralDiff, results: ValueResults) -> str:
    """Return the first key in both files without a result; "" if all have one."""
    checked_keys = results.equal.keys() | results.uncompared.keys()
    checked_keys |= results.measured.keys() | results.unmeasured.keys()
    return next(
        (
            shared_key.key
            for shared_key in _iter_shared_keys(structure)
            if shared_key.key not in checked_keys
        ),
        "",
    )


def _iter_shared_keys(structure: StructuralDiff) -> Iterator[SharedKey]:
    changes_by_key = {c.key: c for c in structure.changes}
    for key in structure.old_tensors:
        change = changes_by_key.get(key)
        if change is None:
            yield SharedKey(key)
        elif (
            isinstance(change, Changed)
            and "shape" not in change.fields
            and key not in structure.quantized_keys
        ):
            yield SharedKey(key, dtype_differs="dtype" in change.fields)


def _iter_rename_candidates(structure: StructuralDiff) -> Iterator[RenameCandidates]:
    groups: dict[object, tuple[list[str], list[str]]] = {}
    for change in structure.changes:
        if isinstance(change, Changed) or change.key in structure.quantized_keys:
            continue
        is_removed = isinstance(change, Missing)
        tensor = change.expected if isinstance(change, Missing) else change.actual
        group = groups.setdefault((tensor.dtype, tensor.shape), ([], []))
        group[0 if is_removed else 1].append(change.key)
    for removed, added in groups.values():
        if removed and added:
            yield RenameCandidates(tuple(removed), tuple(added))


def _iter_tie_checks(structure: StructuralDiff) -> Iterator[TieCheck]:
    new_tensors = structure.new_tensors
    group_numbers = {
        key: n for n, group in enumerate(tied_keys(new_tensors.values())) for key in group
    }
    for group in tied_keys(structure.old_tensors.values()):
        first_key, *other_keys = [key for key in group if key in new_tensors] or [""]
        for other_key in other_keys:
            is_separated = first_key not in group_numbers or group_numbers[
                first_key
            ] != group_numbers.get(other_key)
            if is_separated and _dtype_and_shape(new_tensors[first_key]) == _dtype_and_shape(
                new_tensors[other_key]
            ):
                yield TieCheck(first_key, other_key)


def _dtype_and_shape(tensor: TensorInfo) -> object:
    return tensor.dtype, tensor.shape


def _compare_values(
    structure: StructuralDiff, keys: list[str], runner: BatchRunner
) -> tuple[dict[str, bool], dict[str, str]]:
    pairs = [(structure.old_tensors[key], structure.new_tensors[key]) for key in keys]
    results = dict(zip(keys, equality.equal_many(pairs, runner=runner), strict=True))
    uncompared_reasons = {
        key: unreadable_reason(old) or unreadable_reason(new) or "their parts differ"
        for (key, is_equal), (old, new) in zip(results.items(), pairs, strict=True)
        if is_equal is None
    }
    return {
        key: is_equal for key, is_equal in results.items() if is_equal is not None
    }, uncompared_reasons


def _find_renames(
    structure: StructuralDiff, groups: list[RenameCandidates], runner: BatchRunner
) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    """Return (proved renames, possible renames, removed keys refuted by values).

    Pairs with similar names are tried first, then those with equal fingerprints. Zeros, counters
    and masks prove nothing by themselves.
    """
    removed = [key for group in groups for key in group.removed]
    added = {key for group in groups for key in group.added}
    candidates = ((a, structure.renames_by_name.get(a)) for a in removed)
    renames_by_name = {
        a: b for a, b in candidates if b in added and _has_same_form(structure, a, b)
    }
    pairs = [
        (structure.old_tensors[a], structure.new_tensors[b]) for a, b in renames_by_name.items()
    ]
    results = dict(zip(renames_by_name, equality.equal_many(pairs, runner=runner), strict=True))
    equal_renames = {a: renames_by_name[a] for a, is_equal in results.items() if is_equal}
    used_keys = set(equal_renames.values())
    found_renames: dict[str, str] = {}
    for group in groups:
        remaining = [key for key in group.removed if key not in equal_renames]
        free_keys = [key for key in group.added if key not in used_keys]
        if remaining and free_keys:
            found_renames |= _pair_by_content(structure, remaining, free_keys, runner)
    equal_renames |= found_renames
    possible_renames = _select_unproved(structure, equal_renames)
    proved_renames = {a: b for a, b in equal_renames.items() if a not in possible_renames}
    refuted = tuple(a for a, is_equal in results.items() if is_equal is False)
    return proved_renames, possible_renames, refuted


def _select_unproved(structure: StructuralDiff, renames: Mapping[str, str]) -> dict[str, str]:
    """Return the renames whose values tell nothing, unless another rename speaks for them.

    `fc.bias` of zeros is `lin.bias` where the values of `fc.weight` are those of `lin.weight`, and
    so is all else below `fc`; the layers of a list were paired by their numbers.
    """
    pattern_counts = Counter(map(mask_numbers, renames))
    unproved = {
        old_key: new_key
        for old_key, new_key in renames.items()
        if pattern_counts[mask_numbers(old_key)] == 1
        and not has_telling_values(structure.old_tensors[old_key])
    }
    proved = [pair for pair in renames.items() if pair[0] not in unproved]
    renamed_modules = {_split_key(old)[0]: _split_key(new)[0] for old, new in proved}
    moves = {_cut_common_end(old, new) for old, new in proved}
    return {
        old_key: new_key
        for old_key, new_key in unproved.items()
        if (renamed_modules.get(_split_key(old_key)[0]), _split_key(old_key)[1])
        != _split_key(new_key)
        and _cut_common_end(old_key, new_key) not in moves
    }


def _cut_common_end(old_key: str, new_key: str) -> tuple[str, str]:
    """Return what two keys begin with that differs: "fc", "lin" for "fc.bias", "lin.bias"."""
    old_names, new_names = old_key.split("."), new_key.split(".")
    while old_names and new_names and old_names[-1] == new_names[-1]:
        old_names.pop()
        new_names.pop()
    return ".".join(old_names), ".".join(new_names)


def _split_key(key: str) -> tuple[str, str]:
    """Return the name of the module, and the name in it."""
    module_name, _, name = key.rpartition(".")
    return module_name, name


def _has_same_form(structure: StructuralDiff, removed: str, added: str) -> bool:
    return _dtype_and_shape(structure.old_tensors[removed]) == _dtype_and_shape(
        structure.new_tensors[added]
    )


def _pair_by_content(
    structure: StructuralDiff, removed: list[str], added: list[str], runner: BatchRunner
) -> Iterator[tuple[str, str]]:
    tensors = [structure.old_tensors[key] for key in removed]
    tensors += [structure.new_tensors[key] for key in added]
    fingerprints = fingerprint_many(tensors, runner=runner)
    old_fingerprints = zip(removed, fingerprints[: len(removed)], strict=True)
    new_fingerprints = zip(added, fingerprints[len(removed) :], strict=True)
    return pair_by_fingerprint(
        {k: p for k, p in old_fingerprints if p}, {k: p for k, p in new_fingerprints if p}
    )


def _measure_differences(
    structure: StructuralDiff, keys: list[str], tolerances: Tolerances, runner: BatchRunner
) -> tuple[dict[str, ValueDifference], dict[str, str]]:
    pairs = {key: (structure.old_tensors[key], structure.new_tensors[key]) for key in keys}
    unmeasured_reasons = {
        key: reason
        for key, pair in pairs.items()
        if (reason := difference.unmeasurable_reason(*pair))
    }
    measurable = {key: pair for key, pair in pairs.items() if key not in unmeasured_reasons}
    differences = difference.measure_many(measurable.values(), tolerances, runner)
    return dict(zip(measurable, differences, strict=True)), unmeasured_reasons

"""Old x new checkpoint -> StructuralDiff: keys, shapes and dtypes, without reading values."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.changes import (
    COMPARED_FIELDS,
    DENSE_LAYOUTS,
    Change,
    Changed,
    Missing,
    Unexpected,
    iter_changes,
)
from ckptool.compare.left_out_ties import restore_common_ties
from ckptool.compare.quantization.quantized_form import QuantizedForm, find_quantized_form
from ckptool.compare.remainder_diff import RemainderDiff, compare_remainder
from ckptool.compare.rename_search.key_patterns import PatternError, rename_by_pattern
from ckptool.compare.rename_search.rename_groups import RenameGroup, join_pairs
from ckptool.compare.rename_search.search import find_plain_groups
from ckptool.compare.states import get_state, require_state, require_undamaged
from ckptool.model import Checkpoint, Skipped, StateDict, TensorInfo, all_tensors, tied_keys
from ckptool.phrases import pluralize

MAX_PAIRED_STATES: Final = 100
"""States of each file of which every pair is compared, to find the two that belong together."""


class StructuralDiff(Struct, frozen=True):
    """Comparison of two checkpoints without the values of their tensors."""

    old: Checkpoint
    new: Checkpoint
    places: tuple[str, str]
    old_tensors: Mapping[str, TensorInfo]
    new_tensors: Mapping[str, TensorInfo]
    changes: tuple[Change, ...]
    rename_groups: tuple[RenameGroup, ...]
    """Removed keys with added keys of a similar name and the same shape."""
    remainder: RemainderDiff = RemainderDiff()
    quantized_form: QuantizedForm | None = None
    """Weights that one file has quantised and the other not; their values are not compared."""

    @property
    def renames_by_name(self) -> dict[str, str]:
        """Removed key -> added key of the `rename_groups`."""
        return join_pairs(self.rename_groups)

    @property
    def quantized_keys(self) -> frozenset[str]:
        """Keys that differ because one file is quantised."""
        return self.quantized_form.explained_keys if self.quantized_form else frozenset()


def compare_structure(old: Checkpoint, new: Checkpoint, at: str | None) -> StructuralDiff:
    """Compare two checkpoints without reading values.

    With `at`, the state at `at` of both; else all states if both files have states at the same
    places; else the pair of models with most matching tensors. A name that safetensors leaves out
    since it is tied is no difference, where the metadata declares the tie or the other file has it.

    Raises:
        CorruptCheckpointError: one of the files is damaged.
    """
    require_undamaged(old, new)
    places, old_tensors, new_tensors = _select_states(old, new, at)
    if at is None and places != ("*", "*"):
        old, new = map(_note_unpaired_states, (old, new))
    old_tensors, new_tensors = restore_common_ties(old, new, old_tensors, new_tensors)
    structure = compare_tensors_structure(old, new, places, old_tensors, new_tensors)
    restored = _restore_renamed_ties(structure)
    if restored != (old_tensors, new_tensors):
        structure = compare_tensors_structure(old, new, places, *restored)
    return replace(structure, remainder=compare_remainder(old, new, places))


def compare_tensors_structure(
    old: Checkpoint,
    new: Checkpoint,
    places: tuple[str, str],
    old_tensors: Mapping[str, TensorInfo],
    new_tensors: Mapping[str, TensorInfo],
) -> StructuralDiff:
    """Compare the tensors of two files by shape, dtype and layout, and find renames by key."""
    all_changes = iter_changes(old_tensors, new_tensors, COMPARED_FIELDS)
    changes = tuple(change for change in all_changes if not _is_storage_layout_only(change))
    quantized_form = find_quantized_form(old_tensors, new_tensors) if changes else None
    quantized_keys = quantized_form.explained_keys if quantized_form else frozenset[str]()
    others = [change for change in changes if change.key not in quantized_keys]
    rename_groups = find_plain_groups(
        {c.key: c.expected for c in others if isinstance(c, Missing)},
        {c.key: c.actual for c in others if isinstance(c, Unexpected)},
    )
    return StructuralDiff(
        old,
        new,
        places,
        old_tensors,
        new_tensors,
        changes,
        rename_groups,
        quantized_form=quantized_form,
    )


def _restore_renamed_ties(
    structure: StructuralDiff,
) -> tuple[Mapping[str, TensorInfo], Mapping[str, TensorInfo]]:
    """Return the tensors of both files, with tied names that one leaves out and the other renamed.

    Each file is asked under the names that the other has.
    """
    old_tensors, new_tensors = structure.old_tensors, structure.new_tensors
    if not structure.rename_groups:
        return old_tensors, new_tensors
    forward = [(g.old_pattern, g.new_pattern, g.pairs) for g in structure.rename_groups]
    backward = [(new, old, {b: a for a, b in pairs.items()}) for old, new, pairs in forward]
    renamed_old = _rename_tensors(old_tensors, new_tensors, forward)
    renamed_new = _rename_tensors(new_tensors, old_tensors, backward)
    return (
        restore_common_ties(structure.old, structure.new, old_tensors, renamed_new)[0],
        restore_common_ties(structure.old, structure.new, renamed_old, new_tensors)[1],
    )


def _rename_tensors(
    tensors: Mapping[str, TensorInfo],
    kept_keys: Collection[str],
    renames: Sequence[tuple[str, str, Mapping[str, str]]],
) -> dict[str, TensorInfo]:
    """Return the tensors under the names that the other file has, those in `kept_keys` as is.

    A tied key that is in no pair follows the first pattern that it matches.
    """

    def rename(key: str) -> str:
        pairs = next((pairs for _, _, pairs in renames if key in pairs), {})
        if key in kept_keys or key in pairs:
            return pairs.get(key, key)
        with suppress(PatternError):
            return next(filter(None, (rename_by_pattern(key, a, b) for a, b, _ in renames)), key)
        return key

    tied = {key for group in tied_keys(tensors.values()) for key in group}
    paired = {key for _, _, pairs in renames for key in pairs}
    names = {key: rename(key) for key in tied | paired if key in tensors}
    return {
        names.get(key, key): replace(tensor, key=names.get(key, key))
        for key, tensor in tensors.items()
    }


def _is_storage_layout_only(change: Change) -> bool:
    return (
        isinstance(change, Changed)
        and change.fields == {"layout"}
        and {change.expected.layout, change.actual.layout} <= DENSE_LAYOUTS
    )


def _select_states(
    old: Checkpoint, new: Checkpoint, at: str | None
) -> tuple[tuple[str, str], Mapping[str, TensorInfo], Mapping[str, TensorInfo]]:
    if at is not None:
        old_tensors, new_tensors = get_state(old, at).tensors, get_state(new, at).tensors
        if not (old_tensors or new_tensors):
            require_state(old, at)  # raises: two missing states are an error, not equal
        return (at, at), old_tensors, new_tensors
    old_places, new_places = (sorted(state.at for state in file.states) for file in (old, new))
    if old_places == new_places and len(old_places) != 1:
        return ("*", "*"), all_tensors(old), all_tensors(new)
    old_states = _select_largest(_select_models(old))
    new_states = _select_largest(_select_models(new))
    pairs = list(product(old_states, new_states))
    if not pairs:
        return ("", ""), {}, {}
    a, b = (
        pairs[0]
        if len(pairs) == 1
        else max(pairs, key=lambda pair: (_count_matching_tensors(*pair), pair[0].at == pair[1].at))
    )
    return (a.at, b.at), a.tensors, b.tensors


def _select_models(checkpoint: Checkpoint) -> Sequence[StateDict]:
    """Return the states without optimizers and lists of tensors, or all if there are no others.

    Two optimizers have more tensors in common than the models that they are of.
    """
    models = [s for s in checkpoint.states if s.role not in {"optimizer", "tensors"}]
    return models or checkpoint.states


def _select_largest(states: Sequence[StateDict]) -> list[StateDict]:
    """Return the states with most tensors, up to `MAX_PAIRED_STATES`, in the file's order."""
    if len(states) <= MAX_PAIRED_STATES:
        return list(states)
    order = sorted(range(len(states)), key=lambda index: -len(states[index].tensors))
    return [states[index] for index in sorted(order[:MAX_PAIRED_STATES])]


def _note_unpaired_states(checkpoint: Checkpoint) -> Checkpoint:
    """Add to `skipped` the states that `_select_largest` leaves out."""
    unpaired_count = len(_select_models(checkpoint)) - MAX_PAIRED_STATES
    if unpaired_count <= 0:
        return checkpoint
    skipped = Skipped(
        f"the {pluralize(unpaired_count, 'smallest state')} of {checkpoint.path}",
        "the best match of the others was used: --at selects one",
    )
    return replace(checkpoint, skipped=(*checkpoint.skipped, skipped))


def _count_matching_tensors(a: StateDict, b: StateDict) -> int:
    smaller, larger = sorted((a.tensors, b.tensors), key=len)
    return sum(key in larger and larger[key].shape == t.shape for key, t in smaller.items())

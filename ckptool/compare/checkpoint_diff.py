"""StructuralDiff x ValueResults -> CheckpointDiff: the result of comparing two files."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TypeVar

from msgspec import Struct

from ckptool.compare.changes import Change
from ckptool.compare.left_out_ties import find_retied_keys
from ckptool.compare.quantization.quantized_form import QuantizedForm
from ckptool.compare.remainder_diff import RemainderDiff, is_relocated
from ckptool.compare.rename_search.rename_groups import RenameGroup, group_renames
from ckptool.compare.structural_diff import StructuralDiff
from ckptool.compare.value_checks import ValueResults
from ckptool.model import (
    Checkpoint,
    TensorInfo,
    tied_keys,
)
from ckptool.values.difference.sums import Tolerances, ValueDifference


class CheckpointDiff(Struct, frozen=True, dict=True):
    """Comparison of two checkpoints: tensors by key, values if they were read, plain data."""

    old: Checkpoint
    new: Checkpoint
    old_tensors: Mapping[str, TensorInfo]
    new_tensors: Mapping[str, TensorInfo]
    places: tuple[str, str]
    """`at` of the compared state in (old, new); "*" if all states of both are compared."""
    changes: tuple[Change, ...]
    renames: Mapping[str, str]
    """Removed key -> added key that is probably the same tensor."""
    proved_renames: frozenset[str]
    """Removed keys whose rename is confirmed by equal values."""
    possible_renames: Mapping[str, str]
    """Removed key -> added key of the same values, where these prove nothing (zeros)."""
    differing_keys: tuple[str, ...] | None
    """Keys in both whose values differ; None if values were not read."""
    uncompared_keys: Mapping[str, str]
    """Key in both whose values could not be compared -> reason."""
    value_differences: Mapping[str, ValueDifference] = {}
    """Key whose values or dtypes differ -> statistics of the difference."""
    unmeasured_keys: Mapping[str, str] = {}
    """Key whose difference could not be measured -> reason."""
    tolerances: Tolerances | None = None
    """Tolerances within which values count as equal; None: values must be identical."""
    diverged_ties: tuple[tuple[str, str], ...] = ()
    """Pairs of keys tied in the old file that have different values in the new one."""
    remainder: RemainderDiff = RemainderDiff()
    """Comparison of what stands beside the tensors: plain data, code, other states."""
    quantized_form: QuantizedForm | None = None
    """Weights that one file has quantised and the other not; their values are not compared."""

    @cached_property
    def rename_groups(self) -> tuple[RenameGroup, ...]:
        """The `renames`, those that replace the same segments together; proved ones apart."""
        proved = {a: b for a, b in self.renames.items() if a in self.proved_renames}
        unproved = {a: b for a, b in self.renames.items() if a not in self.proved_renames}
        return (*group_renames(proved), *group_renames(unproved))

    @property
    def plain_changes(self) -> tuple[Change, ...]:
        """Changes but those that come of quantisation."""
        if self.quantized_form is None:
            return self.changes
        explained_keys = self.quantized_form.explained_keys
        return tuple(change for change in self.changes if change.key not in explained_keys)

    @property
    def keys_beyond_tolerance(self) -> tuple[str, ...]:
        """Keys whose values differ by more than the tolerances."""
        if self.tolerances is None:
            return self.differing_keys or ()
        return tuple(
            key
            for key in self.differing_keys or ()
            if key not in self.value_differences or not self.value_differences[key].close
        )

    @property
    def ties_differ(self) -> bool:
        """Whether other keys are tied, or safetensors stores a tied tensor under another name."""
        old_groups, new_groups = (
            {frozenset(group) for group in tied_keys(tensors.values())}
            for tensors in (self.old_tensors, self.new_tensors)
        )
        old_names = find_retied_keys(self.old.container, self.old_tensors)
        new_names = find_retied_keys(self.new.container, self.new_tensors)
        return (old_groups, old_names) != (new_groups, new_names)

    @property
    def retied_keys(self) -> Mapping[str, str]:
        """Key that a safetensors file leaves out, since it is tied -> the key that it stores."""
        return {
            **find_retied_keys(self.old.container, self.old_tensors),
            **find_retied_keys(self.new.container, self.new_tensors),
        }

    @property
    def is_relocated(self) -> bool:
        """Whether the state is in another container or place in the new file, or of another kind.

        A pickled module is of another kind than its state_dict.
        """
        return is_relocated(self.old, self.new, self.places)

    @property
    def has_differences(self) -> bool:
        ties_lost = self.ties_differ and not self.is_relocated
        return bool(
            self.changes or self.keys_beyond_tolerance or self.remainder.changed or ties_lost
        )


_Value = TypeVar("_Value")


def build_checkpoint_diff(
    structure: StructuralDiff, results: ValueResults | None, tolerances: Tolerances | None
) -> CheckpointDiff:
    """Build the CheckpointDiff from structure and value results; None: values were not read."""
    results_or_empty = results or ValueResults()
    used_keys = {
        *results_or_empty.refuted,
        *results_or_empty.renamed,
        *results_or_empty.renamed.values(),
        *results_or_empty.possible,
        *results_or_empty.possible.values(),
    }
    unproved_renames = {
        a: b for a, b in structure.renames_by_name.items() if used_keys.isdisjoint((a, b))
    }
    renames = unproved_renames | dict(results_or_empty.renamed)
    common_keys = [key for key in structure.old_tensors if key in structure.new_tensors]
    new_positions = {key: n for n, key in enumerate(structure.new_tensors)}
    diverged_ties = [
        keys for keys in results_or_empty.diverged if new_positions.keys() >= set(keys)
    ]
    return CheckpointDiff(
        old=structure.old,
        new=structure.new,
        old_tensors=structure.old_tensors,
        new_tensors=structure.new_tensors,
        places=structure.places,
        changes=structure.changes,
        renames=_order_by(renames, structure.old_tensors),
        proved_renames=frozenset(results_or_empty.renamed),
        possible_renames=_order_by(results_or_empty.possible, structure.old_tensors),
        differing_keys=None
        if results is None
        else tuple(key for key in structure.old_tensors if results.equal.get(key) is False),
        uncompared_keys=_order_by(results_or_empty.uncompared, common_keys),
        value_differences=_order_by(results_or_empty.measured, common_keys),
        unmeasured_keys=_order_by(results_or_empty.unmeasured, common_keys),
        tolerances=tolerances,
        quantized_form=structure.quantized_form,
        remainder=structure.remainder,
        diverged_ties=tuple(
            sorted(diverged_ties, key=lambda keys: [new_positions[key] for key in keys])
        ),
    )


def _order_by(values_by_key: Mapping[str, _Value], order: Iterable[str]) -> dict[str, _Value]:
    return {key: values_by_key[key] for key in order if key in values_by_key}

"""Reports of `inspect` and `diff`."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from ckptool.report.parts import FactReport, Report, TensorReport, UnsavedTensorReport


class StateReport(Struct, frozen=True, kw_only=True):
    at: str
    role: str
    tensors: tuple[TensorReport, ...]
    unsaved: tuple[TensorReport, ...]
    """Of a pickled module: tensors that its state_dict() omits."""
    others: Mapping[str, str]
    ties: tuple[tuple[str, ...], ...]


class EntryReport(Struct, frozen=True, kw_only=True):
    at: str
    text: str


class CheckpointReport(Struct, frozen=True, kw_only=True):
    path: str
    container: str
    nbytes: int
    globals: tuple[str, ...]
    """All names that the file's pickles would import, "module.name", sorted."""
    states: tuple[StateReport, ...]
    entries: tuple[EntryReport, ...]
    metadata: Mapping[str, str]
    damage: str


class KeyVerdict(Struct, frozen=True, kw_only=True):
    """The problem, severity and fix of one key that does not match."""

    key: str
    problem: str
    """"missing", "unexpected" or "mismatched"."""
    code: str
    what: str
    level: str
    fix: str


class InspectReport(Report, frozen=True, kw_only=True):
    checkpoints: tuple[CheckpointReport, ...]
    errors: tuple[str, ...] = ()
    """One line for each path that could not be read."""


class DiffModuleReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"loads strictly", "loads, but ..." or "does not load ..."."""
    path: str
    module: str
    at: str
    notes: tuple[str, ...]
    matched: tuple[str, ...]
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    mismatched_keys: tuple[str, ...]
    verdicts: tuple[KeyVerdict, ...]
    unsaved: tuple[UnsavedTensorReport, ...]
    coverage: float
    """Fraction of the parameters' elements that would load, 0 to 1."""
    explanation: tuple[FactReport, ...] = ()
    """Facts about the key of --explain, () without it."""


class ChangeReport(Struct, frozen=True, kw_only=True):
    """Differences of one tensor's values between two files.

    Statistics are over the elements that are finite on both sides, in float64; None if there are
    none, or if the shapes differ.
    """

    key: str
    old_dtype: str
    new_dtype: str
    elements: int
    changed: int
    """Number of elements whose values differ; NaN equals NaN of the same bits."""
    max_abs: float | None
    mean_abs: float | None
    relative_l2: float | None
    """Norm of the difference divided by the norm of the old values; None if that is zero."""
    cosine: float | None
    close: bool
    """Equal within the tolerances."""
    rounding: bool
    """Whether dtypes differ and rounding one tensor to the other's dtype makes them equal."""
    old_nonfinite: int
    new_nonfinite: int
    histogram: tuple[int, ...] = ()
    """Changed elements by the decade of their absolute difference, 17 counts: below 1e-12,
    one decade each up to 1e3, all above."""


class DiffFilesReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"identical", "same state, other container", "values within tolerance", "values differ",
    "plain data differs", "compatible" or "breaking"."""
    old: str
    new: str
    old_at: str
    new_at: str
    added_keys: tuple[str, ...]
    removed_keys: tuple[str, ...]
    changed_keys: tuple[str, ...]
    """Keys in both files whose shape, dtype, layout or values differ."""
    renamed_keys: Mapping[str, str]
    """Removed key -> added key that is probably the same tensor."""
    value_keys: tuple[str, ...]
    """The `changed_keys` of which only the values differ."""
    changed_entries: tuple[str, ...]
    """Places of plain data (an epoch, a configuration) that differ between the files."""
    changes: tuple[ChangeReport, ...] = ()
    """Tensors whose values or dtypes differ, in descending order of relative change."""
    rtol: float | None = None
    """The tolerances of the comparison; None if none were set."""
    atol: float | None = None
    explanation: tuple[FactReport, ...] = ()
    """Facts about the key of --explain, () without it."""


class DiffShardReport(Report, frozen=True, kw_only=True):
    """Result of one shard of a diff that is split over machines; input of `ckptool merge`."""

    verdict: str
    old: str
    new: str
    part: int
    """Number of this shard, from 1."""
    parts: int
    compared: int
    """Number of comparisons in this shard: tensors, or groups of renamed tensors."""
    differing_keys: tuple[str, ...]
    evidence: Mapping[str, Any]
    """Data from which `ckptool merge` builds the full report; an unstable format."""

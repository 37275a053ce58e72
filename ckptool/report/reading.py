"""Checkpoints, and how they differ."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from ckptool.report.parts import FactReport, Report, TensorReport, UnsavedReport


class StateReport(Struct, frozen=True, kw_only=True):
    at: str
    role: str
    tensors: tuple[TensorReport, ...]
    unsaved: tuple[TensorReport, ...]
    """Of a pickled module: what its state_dict() would leave out."""
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
    """What one key that does not match is, whether it matters, and what to do."""

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
    unsaved: tuple[UnsavedReport, ...]
    coverage: float
    """Share of the parameters' elements that would load, 0 to 1."""
    explanation: tuple[FactReport, ...] = ()
    """All that is known of the one key asked for."""


class ChangeReport(Struct, frozen=True, kw_only=True):
    """How the values of one tensor differ between two files.

    Figures are over the elements that are finite on both sides, in float64; None where there are
    none, or where the shapes differ.
    """

    key: str
    old_dtype: str
    new_dtype: str
    elements: int
    changed: int
    """Elements that are another number; NaN is equal to NaN of the same bits."""
    max_abs: float | None
    mean_abs: float | None
    relative_l2: float | None
    """Norm of the difference by the norm of the old values; None where that is zero."""
    cosine: float | None
    close: bool
    """Equal within the tolerances."""
    rounding: bool
    """Two dtypes, and the one rounded to the other is the same: nothing but rounding."""
    old_nonfinite: int
    new_nonfinite: int
    histogram: tuple[int, ...] = ()
    """Changed elements by the decade of their absolute difference: below 1e-12, then a decade
    each up to 1e3, then all above: 17 counts."""


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
    """In both, with another shape, dtype, layout or other values."""
    renamed_keys: Mapping[str, str]
    """Removed key -> added key that is probably the same tensor."""
    value_keys: tuple[str, ...]
    """Those of `changed_keys` whose values alone differ."""
    changed_entries: tuple[str, ...]
    """Places of plain data (an epoch, a configuration) that differ."""
    changes: tuple[ChangeReport, ...] = ()
    """Of the tensors whose values or dtypes differ, the largest relative change first."""
    rtol: float | None = None
    """The tolerances that were given; None where none were."""
    atol: float | None = None
    explanation: tuple[FactReport, ...] = ()
    """All that is known of the one key asked for."""


class PartReport(Report, frozen=True, kw_only=True):
    """What one of several machines found: `ckptool merge` puts the parts together."""

    verdict: str
    old: str
    new: str
    part: int
    """From 1."""
    parts: int
    compared: int
    """Tensors, or groups of renamed ones, that were this part's."""
    differing_keys: tuple[str, ...]
    evidence: Mapping[str, Any]
    """All that the whole report needs to be made without the files; no format to rely on."""

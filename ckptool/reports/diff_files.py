"""DiffFilesReport and PartReport: the results of `diff` of two checkpoints and of `merge`."""

from collections.abc import Mapping
from math import inf
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict

from ckptool.compare.changes import Changed, Missing, Unexpected, breaks_loading
from ckptool.compare.checkpoint_diff import CheckpointDiff
from ckptool.compare.diff_shards import DiffShard
from ckptool.compare.explain_key import explain_checkpoint_key
from ckptool.model import Container, Skipped, natural_sort_key
from ckptool.phrases import join_limited, pluralize
from ckptool.policy import ExitCode, Verdict
from ckptool.reports.common import (
    FactReport,
    Report,
    build_fact_reports,
    build_finding_reports,
    build_skipped_reports,
)
from ckptool.reports.details.entry_changes import EntryChangeReport, build_entry_changes

_MAX_LISTED: Final = 10
"""Values beside the compared state that are named."""


class ChangeReport(Struct, frozen=True, kw_only=True):
    """Differences of one tensor's values between two files.

    Statistics are over the elements that are finite on both sides, in float64; None if there are
    none, if no such element changed although others did, or if the shapes differ.
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
    """"identical", "same state", "same state, different format", "values within tolerance",
    "values differ", "plain data differs", "compatible" or "breaking"."""
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
    retied_keys: Mapping[str, str] = {}
    """Key that a safetensors file leaves out since it is tied -> the key that it stores."""
    explanation: tuple[FactReport, ...] = ()
    """Facts about the key of --explain, () without it."""
    quantized_keys: tuple[str, ...] = ()
    """Keys that are added, removed or changed since one file is the other's quantised form."""
    entry_changes: tuple[EntryChangeReport, ...] = ()
    """What the `changed_entries` are in both files, as far as they are plain values."""
    unsaved_roles: Mapping[str, str] = {}
    """Those of the `changed_entries` that are tensors which a state_dict lacks -> their role: a
    `model.Kind`."""


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


def build_checkpoint_diff_report(
    diff: CheckpointDiff, verdict: Verdict, explain: str | None = None
) -> DiffFilesReport:
    """Build the report of the differences between two files.

    Raises:
        UsageError: `explain` is a key that is on neither side.
    """
    tolerances = diff.tolerances
    return DiffFilesReport(
        command="diff",
        findings=build_finding_reports(verdict),
        skipped=build_skipped_reports(_collect_skipped(diff)),
        exit_code=verdict.exit_code,
        verdict=_format_checkpoint_diff_verdict(diff),
        old=str(diff.old.path),
        new=str(diff.new.path),
        old_at=diff.places[0],
        new_at=diff.places[1],
        added_keys=tuple(c.key for c in diff.changes if isinstance(c, Unexpected)),
        removed_keys=tuple(c.key for c in diff.changes if isinstance(c, Missing)),
        changed_keys=(
            *(c.key for c in diff.changes if isinstance(c, Changed)),
            *(diff.differing_keys or ()),
        ),
        renamed_keys=diff.renames,
        value_keys=diff.differing_keys or (),
        changed_entries=diff.remainder.changed,
        changes=_build_change_reports(diff),
        rtol=tolerances.rtol if tolerances else None,
        atol=tolerances.atol if tolerances else None,
        retied_keys=diff.retied_keys,
        explanation=build_fact_reports(explain_checkpoint_key(diff, explain) if explain else ()),
        quantized_keys=_list_quantized_keys(diff),
        entry_changes=build_entry_changes(diff.old, diff.new, diff.remainder.changed, diff.places),
        unsaved_roles=_find_unsaved_roles(diff),
    )


def _find_unsaved_roles(diff: CheckpointDiff) -> dict[str, str]:
    """Return the role of each tensor that differs and that a state_dict lacks."""
    unsaved = {
        key: tensor.kind
        for checkpoint in (diff.old, diff.new)
        for state in checkpoint.states
        for key, tensor in state.unsaved_tensors.items()
    }
    return {key: str(unsaved[key] or "") for key in diff.remainder.changed if key in unsaved}


def _list_quantized_keys(diff: CheckpointDiff) -> tuple[str, ...]:
    form = diff.quantized_form
    if form is None:
        return ()
    return tuple(change.key for change in diff.changes if change.key in form.explained_keys)


def build_diff_shard_report(
    shard: DiffShard, compared_count: int, evidence: Mapping[str, Any]
) -> DiffShardReport:
    """Build the report of one shard of a diff; it is judged after `merge_shards`."""
    differing_keys = tuple(key for key, is_equal in shard.answers.equal.items() if not is_equal)
    return DiffShardReport(
        command="diff",
        findings=(),
        skipped=build_skipped_reports(_build_skipped(shard.answers.uncompared, "values of")),
        exit_code=ExitCode.PASSED,
        verdict=f"part {shard.number} of {shard.of}: not judged until all parts are merged",
        old=shard.old.path,
        new=shard.new.path,
        part=shard.number,
        parts=shard.of,
        compared=compared_count,
        differing_keys=differing_keys,
        evidence=evidence,
    )


def _format_checkpoint_diff_verdict(diff: CheckpointDiff) -> str:
    """Return the verdict on two files.

    "breaking": code that loads the old file strictly does not load the new file strictly.
    "compatible": it does, but a dtype or a tie differs, or not all values were compared.
    "same state": other content has no counterpart, and was not compared.
    """
    if _is_breaking(diff):
        return "breaking"
    if diff.changes:
        return "compatible"
    if diff.keys_beyond_tolerance:
        return "values differ"
    if diff.remainder.changed and not diff.differing_keys:
        return "plain data differs"
    if diff.differing_keys is None or diff.uncompared_keys or diff.remainder.uncompared:
        return "compatible"
    return "values within tolerance" if diff.differing_keys else _format_unchanged_verdict(diff)


def _is_breaking(diff: CheckpointDiff) -> bool:
    return any(
        isinstance(change, Missing | Unexpected) or breaks_loading(change)
        for change in diff.changes
    )


def _format_unchanged_verdict(diff: CheckpointDiff) -> str:
    if diff.is_relocated:
        return "same state, different format"
    if diff.ties_differ:
        return "compatible"
    return "identical" if diff.remainder.is_complete else "same state"


def _collect_skipped(diff: CheckpointDiff) -> list[Skipped]:
    skipped = [*diff.old.skipped, *diff.new.skipped]
    if diff.differing_keys is None:
        skipped.append(Skipped("values", "--no-values: only keys, shapes and dtypes were compared"))
    if diff.quantized_form is not None and diff.differing_keys is not None:
        weights = pluralize(len(diff.quantized_form.layers), "weight")
        skipped.append(Skipped(f"values of {weights}", "quantised in one file only"))
    skipped += _build_skipped(diff.uncompared_keys, "values of")
    skipped += [Skipped(what, reason) for what, reason in diff.remainder.uncompared.items()]
    sides = (("the old file", diff.old), ("the new file", diff.new))
    for (name, checkpoint), parts in zip(sides, diff.remainder.parts, strict=True):
        if parts:
            is_live = checkpoint.container is Container.LIVE
            what = f"other content of {checkpoint.path if is_live else name}"
            skipped.append(Skipped(what, join_limited(parts, _MAX_LISTED)))
    return skipped + _build_skipped(diff.unmeasured_keys, "statistics of")


def _build_skipped(reasons: Mapping[str, str], what: str) -> list[Skipped]:
    return [Skipped(f"{what} {key}", reason) for key, reason in reasons.items()]


def _build_change_reports(diff: CheckpointDiff) -> tuple[ChangeReport, ...]:
    reports = (
        ChangeReport(
            key=key,
            old_dtype=diff.old_tensors[key].dtype,
            new_dtype=diff.new_tensors[key].dtype,
            **asdict(difference),
        )
        for key, difference in diff.value_differences.items()
    )
    return tuple(
        sorted(
            reports,
            key=lambda change: (-_get_relative_change(change), natural_sort_key(change.key)),
        )
    )


def _get_relative_change(change: ChangeReport) -> float:
    """Return the relative change; infinity if it is undefined (zero norm), or for a new NaN."""
    if change.relative_l2 is None or change.old_nonfinite != change.new_nonfinite:
        return inf if change.changed else 0.0
    return change.relative_l2

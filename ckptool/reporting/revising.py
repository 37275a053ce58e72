"""CheckpointDiff -> DiffFilesReport, DiffShard -> DiffShardReport."""

from collections.abc import Mapping
from math import inf
from typing import Any

from msgspec.structs import asdict

from ckptool.compare import Changed, Missing, Revision, Unexpected
from ckptool.explain import explain_revision
from ckptool.model import Skipped, natural
from ckptool.parts import Part
from ckptool.policy import ExitCode, Verdict
from ckptool.report import ChangeReport, DiffFilesReport, PartReport
from ckptool.reporting.parts import fact_reports, findings, skipped_reports


def revised(revision: Revision, verdict: Verdict, explain: str | None = None) -> DiffFilesReport:
    """Build the report of the differences between two files.

    Raises:
        UsageError: `explain` is a key that is on neither side.
    """
    given = revision.tolerances
    return DiffFilesReport(
        command="diff",
        findings=findings(verdict),
        skipped=skipped_reports(_skipped(revision)),
        exit_code=verdict.exit_code,
        verdict=revision_words(revision),
        old=str(revision.old.path),
        new=str(revision.new.path),
        old_at=revision.places[0],
        new_at=revision.places[1],
        added_keys=tuple(c.key for c in revision.changes if isinstance(c, Unexpected)),
        removed_keys=tuple(c.key for c in revision.changes if isinstance(c, Missing)),
        changed_keys=(
            *(c.key for c in revision.changes if isinstance(c, Changed)),
            *(revision.differing or ()),
        ),
        renamed_keys=revision.renames,
        value_keys=revision.differing or (),
        changed_entries=revision.entries,
        changes=_changes(revision),
        rtol=given.rtol if given else None,
        atol=given.atol if given else None,
        explanation=fact_reports(explain_revision(revision, explain) if explain else ()),
    )


def partial(part: Part, compared: int, evidence: Mapping[str, Any]) -> PartReport:
    """Build the report of one shard of a diff; it is judged after `merge_shards`."""
    differing = tuple(key for key, same in part.answers.equal.items() if not same)
    return PartReport(
        command="diff",
        findings=(),
        skipped=skipped_reports(_hard(part.answers.untold, "values of")),
        exit_code=ExitCode.PASSED,
        verdict=f"part {part.number} of {part.of}: not judged until all parts are put together",
        old=part.old.path,
        new=part.new.path,
        part=part.number,
        parts=part.of,
        compared=compared,
        differing_keys=differing,
        evidence=evidence,
    )


def revision_words(revision: Revision) -> str:
    """Return the verdict on two files.

    "breaking": code that loads the old file strictly does not load the new file strictly.
    "compatible": it does, but a dtype or a tie differs, or not all values were compared.
    """
    if _breaks(revision):
        return "breaking"
    if revision.changes:
        return "compatible"
    if revision.beyond:
        return "values differ"
    if revision.entries and not revision.differing:
        return "plain data differs"
    if revision.differing is None or revision.untold:
        return "compatible"
    return "values within tolerance" if revision.differing else _same_words(revision)


def _breaks(revision: Revision) -> bool:
    return any(
        isinstance(change, Missing | Unexpected) or "shape" in change.fields
        for change in revision.changes
    )


def _same_words(revision: Revision) -> str:
    if revision.moved:
        return "same state, other container"
    return "compatible" if revision.ties_differ else "identical"


def _skipped(revision: Revision) -> list[Skipped]:
    skipped = [*revision.old.skipped, *revision.new.skipped]
    if revision.differing is None:
        skipped.append(Skipped("values", "--no-values: only keys, shapes and dtypes were compared"))
    skipped += _hard(revision.untold, "values of")
    return skipped + _hard(revision.unmeasured, "statistics of")


def _hard(reasons: Mapping[str, str], what: str) -> list[Skipped]:
    return [Skipped(f"{what} {key}", why) for key, why in reasons.items()]


def _changes(revision: Revision) -> tuple[ChangeReport, ...]:
    found = (
        ChangeReport(
            key=key,
            old_dtype=revision.old_tensors[key].dtype,
            new_dtype=revision.new_tensors[key].dtype,
            **asdict(figures),
        )
        for key, figures in revision.measured.items()
    )
    return tuple(sorted(found, key=lambda change: (-_relative(change), natural(change.key))))


def _relative(change: ChangeReport) -> float:
    """Return the relative change; infinity if values changed but it is undefined (zero norm)."""
    if change.relative_l2 is not None:
        return change.relative_l2
    return inf if change.changed else 0.0

"""RevisionReport: the result of `revision`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from ckptool.phrases import pluralize
from ckptool.policy import ExitCode
from ckptool.reports.common import Report
from ckptool.reports.migrate import StepReport, build_step_report
from ckptool.revisions.revision import Revision, list_named_steps

if TYPE_CHECKING:
    from ckptool.revisions.recorded_state import StateDifference


class NewRevisionReport(Struct, frozen=True, kw_only=True):
    """A revision that was drafted."""

    name: str
    revision: str
    parent: str
    """Identifier of the revision before it, "" for the first."""
    message: str
    keys: int
    """Number of keys that it records."""
    steps: tuple[StepReport, ...]
    python: str
    """File with its function, "" if it has steps."""


class RevisionReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"drafted NAME ...", "merged ...", "kept a fixture" or "would draft NAME ..."."""
    revisions: tuple[NewRevisionReport, ...]
    difference: str
    """What changed since the revision before it, "" for the first."""
    irreversible: str
    """Why `downgrade` cannot undo it, "" if it can."""
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


class RevisionOutcome(Struct, frozen=True):
    """New revisions and their files."""

    revisions: tuple[Revision, ...]
    """() if only a fixture was kept."""
    files: Mapping[Path, bytes]
    difference: "StateDifference | None" = None
    """From the state before; None of a first revision."""
    irreversible: str = ""
    notes: tuple[str, ...] = ()
    is_merge: bool = False
    is_written: bool = False


def build_revision_report(outcome: RevisionOutcome) -> RevisionReport:
    """Build the report of new revisions."""
    return RevisionReport(
        command="revision",
        findings=(),
        skipped=(),
        exit_code=ExitCode.PASSED,
        verdict=_format_verdict(outcome),
        revisions=tuple(map(_build_new_report, outcome.revisions)),
        difference=outcome.difference.text if outcome.difference else "",
        irreversible=outcome.irreversible,
        files=tuple(map(str, outcome.files)),
        notes=outcome.notes,
    )


def _build_new_report(revision: Revision) -> NewRevisionReport:
    return NewRevisionReport(
        name=revision.name,
        revision=revision.revision,
        parent=revision.parent,
        message=revision.message,
        keys=len(revision.state.forms),
        steps=tuple(map(build_step_report, list_named_steps(revision))),
        python=revision.python,
    )


def _format_verdict(outcome: RevisionOutcome) -> str:
    if not outcome.revisions:
        return f"{'kept' if outcome.is_written else 'would keep'} a fixture"
    new = outcome.revisions[-1]
    verb = "merged: the head is" if outcome.is_merge else "drafted"
    if not outcome.is_written:
        verb = "would merge: the head would be" if outcome.is_merge else "would draft"
    if new.python and not outcome.is_merge:
        return f"{verb} {new.name}: write upgrade(state) in {new.python}"
    if not new.parent:
        return f"{verb} {new.name}: the first revision, {pluralize(len(new.state.forms), 'key')}"
    steps = new.python or pluralize(len(new.plan.ops), "step")
    return f"{verb} {new.name}: {steps}"

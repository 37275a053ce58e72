"""UpgradeReport: the result of `upgrade` and of `downgrade`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import Skipped
from ckptool.phrases import pluralize
from ckptool.policy import ExitCode
from ckptool.reports.common import Report, build_skipped_reports
from ckptool.reports.migrate import CheckReport, StepReport, build_step_report

if TYPE_CHECKING:
    from ckptool.migration.plan.plan_file import Plan
    from ckptool.migration.request import MigrationResult
    from ckptool.revisions.revision import Revision


_NOT_RUN: Final = "not run: ckptool verify runs the module with a file"


class TakenRevisionReport(Struct, frozen=True, kw_only=True):
    """A revision that a file went through."""

    name: str
    revision: str
    message: str
    steps: str
    """"2 steps", or the Python file that was run."""


class UpgradeReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"upgraded from NAME to NAME ...", "downgraded ...", "is at NAME already ..." or "planned"."""
    source: str
    target: str
    """"" if nothing was written."""
    at: str
    from_revision: str
    to_revision: str
    """Names of the revisions' files."""
    revisions: tuple[TakenRevisionReport, ...]
    """In the order in which they were taken or undone."""
    steps: tuple[StepReport, ...]
    checks: tuple[CheckReport, ...]
    is_same_as_earlier: bool | None
    """Of a downgrade: whether every tensor has the bytes of the file that was upgraded; None if
    that is not known."""
    source_digest: str
    result_digest: str
    notes: tuple[str, ...] = ()


class MoveOutcome(Struct, frozen=True):
    """A file at another revision."""

    command: str
    """"upgrade" or "downgrade"."""
    result: "MigrationResult"
    plan: "Plan"
    """The steps, with names for files of the chain."""
    known_by: str
    """How the revision of the source is known."""
    start: "Revision"
    end: "Revision"
    revisions: "Sequence[Revision]"
    is_same_as_earlier: bool | None
    unchecked: str
    unloaded: str
    """Why today's module was not to load the result, "" if it was."""
    notes: tuple[str, ...]


def build_upgrade_report(outcome: MoveOutcome) -> UpgradeReport:
    """Build the report of an upgrade or a downgrade."""
    result, digests = outcome.result, outcome.result.digests
    skipped = [
        *result.checkpoint.skipped,
        *(
            Skipped(c.name, _NOT_RUN if c.name == "forward" else outcome.unloaded or c.reason)
            for c in result.checks
            if c.result == "skipped"
        ),
    ]
    if outcome.unchecked:
        what, _, why = outcome.unchecked.partition(": ")
        skipped.append(Skipped(what, why))
    return UpgradeReport(
        command=outcome.command,
        findings=(),
        skipped=build_skipped_reports(skipped),
        exit_code=ExitCode.PASSED,
        verdict=_format_verdict(outcome),
        source=str(result.checkpoint.path),
        target=str(result.target) if digests else "",
        at=result.state.at,
        from_revision=outcome.start.name,
        to_revision=outcome.end.name,
        revisions=tuple(map(_build_taken_report, outcome.revisions)),
        steps=tuple(_build_step_reports(outcome.plan)),
        checks=tuple(
            CheckReport(name=c.name, result=c.result, reason=c.reason) for c in result.checks
        ),
        is_same_as_earlier=outcome.is_same_as_earlier,
        source_digest=digests.source if digests else "",
        result_digest=digests.result if digests else "",
        notes=(f"{result.checkpoint.path} {outcome.known_by}", *outcome.notes, *result.notes),
    )


def _build_step_reports(plan: "Plan") -> Iterator[StepReport]:
    """Yield the steps; what a Python revision computes anew is not lost."""
    steps = [build_step_report(op) for op in plan.ops]
    computed_keys = {step.after for step in steps if step.source.startswith("python:")}
    for step in steps:
        is_replaced = step.op == "drop" and step.before in computed_keys
        yield replace(step, loses="") if is_replaced else step


def _build_taken_report(revision: "Revision") -> TakenRevisionReport:
    steps = revision.python or pluralize(len(revision.plan.ops), "step")
    return TakenRevisionReport(
        name=revision.name, revision=revision.revision, message=revision.message, steps=steps
    )


def _format_verdict(outcome: MoveOutcome) -> str:
    start, end = outcome.start.name, outcome.end.name
    if not outcome.revisions:
        text = f"is at {end} already"
        return f"{text}; written with its stamp" if outcome.result.digests else text
    text = f"{outcome.command}d from {start} to {end}"
    if outcome.result.digests is None:
        return f"planned (dry run): {text}"
    if outcome.is_same_as_earlier is not None:
        same = "has the bytes" if outcome.is_same_as_earlier else "does not have the bytes"
        return f"{text}: the state {same} of the file that was upgraded"
    has_passed = any(check.result == "passed" for check in outcome.result.checks)
    return f"{text}: loads strictly" if has_passed else text

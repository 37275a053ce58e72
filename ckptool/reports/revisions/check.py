"""ChainCheckReport: the result of `check`."""

from collections.abc import Sequence

from msgspec import Struct

from ckptool.model import Skipped
from ckptool.phrases import pluralize
from ckptool.policy import Verdict
from ckptool.reports.common import (
    Report,
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
)


class ArrivalReport(Struct, frozen=True, kw_only=True):
    """What became of the fixture of one revision; each result is "" if it was not asked."""

    name: str
    message: str
    fixture: str = ""
    """Its file, "" without one."""
    arrives: str = ""
    """"passed", "failed" or "not checked": whether it can be upgraded to the head."""
    loads: str = ""
    """Whether today's module loads the result strictly."""
    outputs: str = ""
    """Whether the module computes what was recorded."""
    back: str = ""
    """Whether a downgrade gives the same state again."""


class ChainCheckReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"every old file arrives at NAME ...", or what is wrong."""
    path: str
    """Folder of the chain."""
    head: str
    revisions: tuple[ArrivalReport, ...]


def build_chain_check_report(
    folder: str,
    head: str,
    revisions: Sequence[ArrivalReport],
    verdict: Verdict,
    difference: str,
    skipped: Sequence[Skipped],
) -> ChainCheckReport:
    """Build the report of a chain; `difference` is that of today's module from the head."""
    return ChainCheckReport(
        command="check",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(skipped),
        exit_code=verdict.exit_code,
        verdict=_format_verdict(head, revisions, difference, has_findings=bool(verdict.findings)),
        path=folder,
        head=head,
        revisions=tuple(revisions),
    )


def _format_verdict(
    head: str, revisions: Sequence[ArrivalReport], difference: str, *, has_findings: bool
) -> str:
    if difference:
        return f"the state of the module changed since {head}, and no revision covers that"
    fixtures = [revision for revision in revisions if revision.fixture]
    arrived = sum(
        revision.arrives == "passed" and "failed" not in (revision.loads, revision.outputs)
        for revision in fixtures
    )
    without = len(revisions) - len(fixtures)
    missing = f"; {pluralize(without, 'revision')} without a fixture" if without else ""
    count = pluralize(len(fixtures), "old file")
    if arrived == len(fixtures) and not has_findings:
        verb = "arrives" if len(fixtures) == 1 else "arrive"
        return f"the module is at {head}, and {count} {verb} there{missing}"
    return f"{arrived} of {count} pass at {head}{missing}"

"""Report -> blocks, the same for all formats for people."""

from collections.abc import Iterator
from typing import assert_never

from ckptool.render import Style
from ckptool.render.blocks import Block, by_path, problems, silenced_lines, skipped_lines
from ckptool.render.layouts import (
    checking,
    digesting,
    gating,
    locking,
    migrating,
    reading,
    revising,
)
from ckptool.report import (
    AnyReport,
    AuditReport,
    DiffFilesReport,
    DiffModuleReport,
    DigestReport,
    GateReport,
    InspectReport,
    LockReport,
    MigrateReport,
    PartReport,
    PolicyReport,
    VerifyReport,
)


def blocks(report: AnyReport, style: Style) -> Iterator[Block]:
    """Yield the blocks of `report`: its body, then findings, silenced findings, skipped checks."""
    yield from body(report, style)
    if style.verbosity >= 0 or isinstance(report, InspectReport):
        several = isinstance(report, GateReport | InspectReport) and len(report.checkpoints) > 1
        for path, found in by_path(report.findings, several=several).items():
            yield from problems(found, style, path)
        yield from silenced_lines(report.silenced)
        yield from skipped_lines(report.skipped)


def body(  # noqa: C901, PLR0911 (one for each report)
    report: AnyReport, style: Style
) -> Iterator[Block]:
    """Yield the blocks of this kind of report: verdict, lines, tables."""
    match report:
        case InspectReport():
            return reading.inspection(report, style)
        case DiffModuleReport():
            return reading.loading(report, style)
        case DiffFilesReport():
            return revising.revision(report, style)
        case PartReport():
            return revising.part(report, style)
        case AuditReport():
            return checking.audit(report, style)
        case MigrateReport():
            return migrating.migration(report, style)
        case VerifyReport():
            return checking.verification(report, style)
        case LockReport():
            return locking.lock(report, style)
        case GateReport():
            return gating.release(report, style)
        case PolicyReport():
            return gating.policy(report, style)
        case DigestReport():
            return digesting.digests(report, style)
        case _:
            assert_never(report)

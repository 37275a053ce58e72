"""Report -> blocks: what a person is shown, whatever the format that draws it."""

from collections.abc import Iterator
from typing import assert_never

from ckptool.render import Style
from ckptool.render.blocks import Block, problems, skipped_lines
from ckptool.render.layouts import checking, migrating, reading
from ckptool.report import (
    AnyReport,
    AuditReport,
    DiffFilesReport,
    DiffModuleReport,
    InspectReport,
    MigrateReport,
    VerifyReport,
)


def blocks(report: AnyReport, style: Style) -> Iterator[Block]:
    """Yield what to show of `report`, in order."""
    yield from body(report, style)
    if style.verbosity >= 0 or isinstance(report, InspectReport):
        yield from problems(report.findings, style)
        yield from skipped_lines(report.skipped)


def body(report: AnyReport, style: Style) -> Iterator[Block]:
    """Yield what is particular to this kind of report: a verdict, lines, tables."""
    match report:
        case InspectReport():
            return reading.inspection(report, style)
        case DiffModuleReport():
            return reading.loading(report, style)
        case DiffFilesReport():
            return reading.revision(report, style)
        case AuditReport():
            return checking.audit(report, style)
        case MigrateReport():
            return migrating.migration(report, style)
        case VerifyReport():
            return checking.verification(report, style)
        case _:
            assert_never(report)

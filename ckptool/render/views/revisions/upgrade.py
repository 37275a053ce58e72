"""UpgradeReport -> blocks."""

from collections.abc import Iterator
from typing import Final

from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    VerdictBlock,
    build_table,
)
from ckptool.render.views.migrate import build_steps_blocks
from ckptool.reports.migrate import list_assumptions
from ckptool.reports.revisions.upgrade import UpgradeReport

REVISION: Final = Column("name")
MESSAGE: Final = Column("message", ColumnKind.PROSE)
STEPS: Final = Column("steps", ColumnKind.PROSE)


def build_blocks(report: UpgradeReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the verdict, the way through the chain, and with -v every step."""
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    location = f" at `{report.at}`" if report.at else ""
    yield LinesBlock(
        (
            f"{report.source}{location} -> {report.target or 'nothing written'}",
            *(f"checked: {c.name}: {c.reason}" for c in report.checks if c.result == "passed"),
            *(f"assumed: {text}" for text in list_assumptions(report.steps)),
            *report.notes,
        )
    )
    rows = [(r.name, r.message, r.steps) for r in report.revisions]
    if rows:
        title = "Revisions" if report.command == "upgrade" else "Undone"
        yield build_table(title, (REVISION, MESSAGE, STEPS), rows, options)
    yield from build_steps_blocks(report.steps, options)

"""MigrateReport -> blocks."""

from collections.abc import Iterator
from typing import Final

from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    WHY,
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    VerdictBlock,
    build_table,
)
from ckptool.reports.migrate import MigrateReport

_STEP: Final = Column("step", ColumnKind.EXACT)


def build_blocks(report: MigrateReport, options: RenderOptions) -> Iterator[Block]:
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    location = f" at `{report.at}`" if report.at else ""
    module_text = f" for {report.module}" if report.module else ""
    target = report.target or "nothing written"
    passed_checks = [
        f"checked: {c.name}: {c.reason}" for c in report.checks if c.result == "passed"
    ]
    yield LinesBlock(
        (f"{report.source}{location}{module_text} -> {target}", *passed_checks, *report.notes)
    )
    rows = [(s.op, s.before, s.after, s.source or "-", s.why) for s in report.steps]
    if rows:
        yield build_table("Plan", (_STEP, "before", "after", "value from", WHY), rows, options)
    losses = [f"{s.op} {s.before} loses {s.loses}" for s in report.steps if s.loses]
    if losses:
        yield LinesBlock(tuple(losses))

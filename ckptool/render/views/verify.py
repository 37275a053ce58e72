"""VerifyReport -> blocks."""

from collections.abc import Iterator

from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    LEVEL,
    RAN_ON,
    STATUS,
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    VerdictBlock,
    build_table,
)
from ckptool.reports.verify import VerifyReport


def build_blocks(report: VerifyReport, options: RenderOptions) -> Iterator[Block]:
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    location = f" at `{report.at}`" if report.at else ""
    yield LinesBlock(
        (f"{report.path}{location} with {report.module}, on {report.device}", *report.notes)
    )
    rows = [
        (
            level.level,
            level.status,
            level.device,
            "; ".join(filter(None, (level.reason, *level.details))),
        )
        for level in report.levels
    ]
    yield build_table(
        "Levels",
        (LEVEL, STATUS, RAN_ON, Column("result", ColumnKind.PROSE)),
        rows,
        options,
    )

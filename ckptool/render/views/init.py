"""InitReport -> blocks."""

from collections.abc import Iterator

from ckptool.render import RenderOptions
from ckptool.render.blocks import Block, Column, ColumnKind, LinesBlock, VerdictBlock, build_table
from ckptool.reports.init import InitReport


def build_blocks(report: InitReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the verdict, what was found for each checkpoint, and the text of the configuration."""
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    if report.notes:
        yield LinesBlock(report.notes)
    rows = [(model.path, model.module or "none", model.outcome) for model in report.models]
    if rows:
        headers = ("checkpoint", "module", Column("outcome", ColumnKind.PROSE))
        yield build_table("Checkpoints of the project", headers, rows, options)
    if report.text:
        yield LinesBlock(tuple(report.text.strip().splitlines()))

"""CurrentReport -> blocks."""

from collections.abc import Iterator

from ckptool.render import RenderOptions
from ckptool.render.blocks import WHY, Block, LinesBlock, VerdictBlock, build_table
from ckptool.reports.revisions.current import CurrentReport, format_current_revision


def build_blocks(report: CurrentReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the verdict, and of several checkpoints a table."""
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    notes = tuple(f"{row.path}: {row.note}" for row in report.checkpoints if row.note)
    if len(report.checkpoints) > 1:
        rows = [
            (row.path, row.name or "-", format_current_revision(row)) for row in report.checkpoints
        ]
        yield build_table("Checkpoints", ("checkpoint", "name", WHY), rows, options)
    if notes:
        yield LinesBlock(notes)

"""ChainCheckReport -> blocks."""

from collections.abc import Iterator
from typing import Final

from ckptool.render import RenderOptions
from ckptool.render.blocks import Block, Column, ColumnKind, VerdictBlock, build_table
from ckptool.render.views.revisions.upgrade import MESSAGE, REVISION
from ckptool.reports.revisions.check import ChainCheckReport

_RESULTS: Final = tuple(
    Column(header, ColumnKind.WORDS) for header in ("arrives", "loads", "outputs", "back")
)


def build_blocks(report: ChainCheckReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the verdict and what became of the fixture of each revision."""
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    rows = [
        (r.name, r.message, *(cell or "-" for cell in (r.arrives, r.loads, r.outputs, r.back)))
        for r in report.revisions
    ]
    yield build_table("Old files", (REVISION, MESSAGE, *_RESULTS), rows, options)

"""FixReport -> blocks."""

from collections.abc import Iterator
from typing import Final

from ckptool.folding import fold_names
from ckptool.phrases import join_limited
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
from ckptool.reports.fix import FixReport

_PROOF: Final = Column("proof", ColumnKind.EXACT)


def build_blocks(report: FixReport, options: RenderOptions) -> Iterator[Block]:
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    if report.diff:
        # An empty line of a diff may lack its space: editors take it away from pages and logs.
        lines = report.diff.rstrip("\n").split("\n")
        yield LinesBlock(tuple("" if line == " " else line for line in lines), language="diff")
    if report.new_files:
        verb = "added" if report.is_written else "would add"
        yield LinesBlock(tuple(f"{verb}: {name}" for name in report.new_files))
    if report.refused:
        rows = [
            (join_limited(fold_names(r.keys), 3), " ".join(r.codes), r.where or "-", r.reason)
            for r in report.refused
        ]
        headers = ("key", "rules", "where", WHY)
        yield build_table("Not fixed", headers, rows, options)
    if report.proofs:
        rows = [(p.name, p.module, p.result, p.reason or "-") for p in report.proofs]
        yield build_table("Proved on a copy", (_PROOF, "module", "result", WHY), rows, options)
    if report.notes:
        yield LinesBlock(report.notes)

"""HistoryReport -> blocks."""

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
from ckptool.render.views.revisions.upgrade import MESSAGE, REVISION
from ckptool.reports.revisions.history import HistoryReport, RevisionRowReport

_KEYS: Final = Column("keys", ColumnKind.NUMBER)
_STEPS: Final = Column("steps", ColumnKind.WORDS)
_UNDONE: Final = Column("undone", ColumnKind.WORDS)
_FIXTURE: Final = Column("fixture", ColumnKind.WORDS)
_IDENTIFIER: Final = Column("revision", ColumnKind.EXACT)


def build_blocks(report: HistoryReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the verdict and the revisions, the head first."""
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    yield LinesBlock((f"{report.folder}, project {report.project}",))
    columns = (REVISION, _IDENTIFIER, MESSAGE, _KEYS, _STEPS, _UNDONE, _FIXTURE)
    yield build_table("Revisions", columns, [_build_row(r) for r in report.revisions], options)
    reasons = [f"{r.name} cannot be undone: {r.irreversible}" for r in report.revisions
               if r.irreversible]  # fmt: skip
    if reasons:
        yield LinesBlock(tuple(reasons))


def _build_row(row: RevisionRowReport) -> tuple[str, ...]:
    is_first = not row.parent
    undone = "-" if is_first else "no" if row.irreversible else "yes"
    return (
        row.name,
        row.revision,
        row.message,
        f"{row.keys:,}",
        "python" if row.python else f"{row.steps:,}",
        undone,
        "yes" if row.fixture else "no",
    )

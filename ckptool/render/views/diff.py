"""DiffModuleReport -> blocks."""

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    COUNT,
    VALUE,
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    TableBlock,
    VerdictBlock,
    build_table,
    fold_unless_verbose,
)
from ckptool.render.views.audit import build_unsaved_table
from ckptool.reports.common import FactReport
from ckptool.reports.diff import DiffModuleReport, KeyReport
from ckptool.rules.load_keys import PROBABLE_RENAME, WRAPPER_PREFIX

_RULE: Final = Column("rule", ColumnKind.EXACT)


def build_blocks(report: DiffModuleReport, options: RenderOptions) -> Iterator[Block]:
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    counts = (
        f"{len(report.matched)} match",
        f"{len(report.missing_keys)} missing",
        f"{len(report.unexpected_keys)} unexpected",
        f"{len(report.mismatched_keys)} of another shape",
    )
    percent = f"{100 * report.coverage:.0f}%"
    share = f"; {percent} of the parameters would load" if report.is_coverage_known else ""
    yield LinesBlock(
        (
            f"{report.path} against {report.module}",
            f"keys: {', '.join(counts)}{share}",
            *report.notes,
        )
    )
    if report.explanation:
        yield from build_explanation_blocks(report.explanation, options)
        return
    if report.verdicts:
        yield _build_verdict_table(report.verdicts, options)
    if report.load_steps:
        rows = [(step.key, step.does, step.file_key or "-") for step in report.load_steps]
        columns = ("key", "the code", "from")
        yield build_table("What the module's own loading code does", columns, rows, options)
    if report.unsaved:
        yield build_unsaved_table(report.unsaved, options)


def build_explanation_blocks(
    facts: tuple[FactReport, ...], options: RenderOptions
) -> Iterator[Block]:
    yield build_table(
        "All that is known of this key",
        ("fact", VALUE),
        [(f.name, f.value) for f in facts],
        options,
    )


_MAX_EXPLAINED_ROWS: Final = 10
"""Rows of keys that a finding on many explains; from this number on they are counted."""
_SHARED_CODES: Final = (WRAPPER_PREFIX, PROBABLE_RENAME)
"""Findings on many keys: without this the table has a row for each key of the file."""


def _build_verdict_table(
    verdicts: tuple[KeyReport, ...], options: RenderOptions
) -> TableBlock | LinesBlock:
    visible = [v for v in verdicts if v.code not in _SHARED_CODES or options.verbosity > 0]
    hidden_count = len(verdicts) - len(visible)
    if hidden_count < _MAX_EXPLAINED_ROWS:
        visible, hidden_count = [*verdicts], 0
    codes = [code for code in _SHARED_CODES if any(v.code == code for v in verdicts)]
    explained_clause = f"{' and '.join(codes)} {'explains' if len(codes) == 1 else 'explain'}"
    folded_verdicts = fold_unless_verbose(
        ((v.key, (v.problem, v.code), v) for v in visible), options
    )
    rows = [
        (
            group.key,
            str(len(group.items)),
            group.items[0].problem,
            group.items[0].level or "ignored",
            group.items[0].code,
        )
        for group in folded_verdicts
    ]
    table = build_table(
        "Keys that do not match", ("key", COUNT, "problem", "matters", _RULE), rows, options
    )
    if not hidden_count:
        return table
    if not visible:
        return LinesBlock(
            (f"Keys that do not match: {hidden_count:,}, as {explained_clause} (-v shows all)",)
        )
    hidden_note = f"... and {hidden_count:,} keys that {explained_clause} (-v shows all)"
    return replace(table, more="; ".join(filter(None, (table.more, hidden_note))))

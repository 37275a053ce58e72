"""GateReport, PolicyReport -> blocks."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    KIND,
    LEVEL,
    RAN_ON,
    STATUS,
    VALUE,
    VERDICT,
    WHY,
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    TableBlock,
    VerdictBlock,
    build_table,
)
from ckptool.reports.gate import GateReport, PolicyReport

_FINE_STATUSES: Final = frozenset({"passed", "skipped"})
"""Statuses of a level that did not fail; one that was required and skipped is a finding."""


def build_blocks(report: GateReport | PolicyReport, options: RenderOptions) -> Iterator[Block]:
    if isinstance(report, PolicyReport):
        return _build_policy_blocks(report, options)
    return _build_gate_blocks(report, options)


def _build_gate_blocks(report: GateReport, options: RenderOptions) -> Iterator[Block]:
    # With --exit-zero the exit code is 0 even if the gate failed.
    has_failed = any(f.fails for f in report.findings) or not all(
        c.passed for c in report.checkpoints
    )
    yield VerdictBlock(report.verdict, has_failed)
    if options.verbosity < 0:
        return
    policy_text = f"policy: {report.policy}" if report.policy else "policy: the defaults"
    yield LinesBlock((policy_text, *report.notes))
    yield from _build_failed_tables(report, options)
    revisions = [(c.path, c.revision) for c in report.checkpoints if c.revision]
    if revisions:
        columns = ("checkpoint", Column("revision", ColumnKind.PROSE))
        yield build_table("Chain of migrations", columns, revisions, options)
    promises = [
        (promise.name, promise.what, promise.result)
        for checkpoint in report.checkpoints
        for promise in checkpoint.promises
    ]
    if promises:
        yield build_table(
            "Contracts",
            ("compared with", KIND, Column("result", ColumnKind.PROSE)),
            list(dict.fromkeys(promises)),
            options,
        )


def _build_failed_tables(report: GateReport, options: RenderOptions) -> Iterator[Block]:
    """Yield what failed, and how much did not; everything where nothing failed, or with -v."""
    rows = [
        (checkpoint.passed, (checkpoint.path, checkpoint.module or "none", checkpoint.verdict))
        for checkpoint in report.checkpoints
    ]
    columns: tuple[Column | str, ...] = ("checkpoint", "module", VERDICT)
    yield _build_failed_table("Checkpoints", columns, rows, options)
    levels = [
        (
            level.status in _FINE_STATUSES,
            (checkpoint.path, level.level, level.status, level.device, level.reason),
        )
        for checkpoint in report.checkpoints
        for level in checkpoint.levels
    ]
    if levels:
        columns = ("checkpoint", LEVEL, STATUS, RAN_ON, WHY)
        title = "Verification required by the policy"
        yield _build_failed_table(title, columns, levels, options)


def _build_failed_table(
    title: str,
    columns: Sequence[Column | str],
    rows: Sequence[tuple[bool, tuple[str, ...]]],
    options: RenderOptions,
) -> TableBlock:
    """Build a table of (did not fail, cells) with the rows that failed, if any did."""
    failed_rows = _join_alike_rows(cells for is_fine, cells in rows if not is_fine)
    if not failed_rows or options.verbosity > 0:
        return build_table(title, columns, [cells for _, cells in rows], options)
    table = build_table(title, columns, failed_rows, options)
    fine_count = sum(is_fine for is_fine, _ in rows)
    note = f"... and {fine_count:,} that did not fail (-v shows all)" if fine_count else ""
    return replace(table, more="; ".join(filter(None, (table.more, note))))


def _join_alike_rows(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Join rows that differ in the checkpoint only: "a.pth and 2 more"."""
    paths_by_cells: dict[tuple[str, ...], list[str]] = {}
    for path, *cells in rows:
        paths_by_cells.setdefault(tuple(cells), []).append(path)
    return [
        (f"{paths[0]} and {len(paths) - 1:,} more" if len(paths) > 1 else paths[0], *cells)
        for cells, paths in paths_by_cells.items()
    ]


def _build_policy_blocks(report: PolicyReport, options: RenderOptions) -> Iterator[Block]:
    for path in dict.fromkeys(setting.path for setting in report.settings):
        rows = [(s.name, s.value, s.origin) for s in report.settings if s.path == path]
        title = f"Policy for {path}" if path else "Policy"
        yield build_table(title, ("setting", VALUE, "from"), rows, options)

"""LockReport -> blocks."""

from collections.abc import Iterator
from typing import Final

from ckptool.phrases import pluralize
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    COUNT,
    VERDICT,
    WHAT,
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    VerdictBlock,
    build_table,
    fold_unless_verbose,
)
from ckptool.reports.lock import DifferenceReport, LockReport, ProjectLockReport

_KEYS: Final = Column("keys", ColumnKind.NUMBER)
_UNSAVED: Final = Column("not saved", ColumnKind.NUMBER, usual_value="0")


def build_blocks(report: LockReport | ProjectLockReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the verdict, the counts and the differences from the previous lock; or of each lock."""
    if isinstance(report, ProjectLockReport):
        yield from _build_locks_blocks(report, options)
        return
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    if report.golden:
        yield LinesBlock((f"{report.name} with {report.golden} -> {report.path}", *report.notes))
        return
    key_text = f"{pluralize(report.keys, 'key')} of the state_dict"
    unsaved_text = f", {pluralize(report.unsaved, 'tensor')} not in it" if report.unsaved else ""
    previous_name_lines = (
        (f"previously taken from {report.name_before}",) if report.name_before else ()
    )
    yield LinesBlock(
        (
            f"{report.source} {report.name}: {key_text}{unsaved_text}",
            report.path,
            *previous_name_lines,
        )
    )
    differences: dict[str, list[tuple[str, str, str]]] = {}
    for d in report.differences:
        cells = (d.what, _shorten_owner(d, d.old), _shorten_owner(d, d.new))
        differences.setdefault(d.key, []).append(cells)
    joined = [
        (key, tuple("; ".join(texts) for texts in zip(*cells, strict=True)))
        for key, cells in differences.items()
    ]
    rows = [
        (group.key, f"{len(group.items):,}", *group.items[0])
        for group in fold_unless_verbose(((key, cells, cells) for key, cells in joined), options)
    ]
    if rows:
        title = "Differences from the lock"
        old, new = Column("in the lock", ColumnKind.PROSE), Column("now", ColumnKind.PROSE)
        yield build_table(title, ("key", COUNT, WHAT, old, new), rows, options)


def _build_locks_blocks(report: ProjectLockReport, options: RenderOptions) -> Iterator[Block]:
    yield VerdictBlock(report.verdict, bool(report.exit_code))
    if options.verbosity < 0:
        return
    yield from [LinesBlock(report.errors)] if report.errors else []
    columns = ("lock", "module", _KEYS, _UNSAVED, VERDICT)
    rows = [
        (lock.path, lock.name, f"{lock.keys:,}", f"{lock.unsaved:,}", lock.verdict)
        for lock in report.locks
    ]
    if rows:
        yield build_table("Locks", columns, rows, options)


def _shorten_owner(difference: DifferenceReport, text: str) -> str:
    """Strip the package from an owner's class name; other text is unchanged, "" becomes "-"."""
    return (text.rsplit(".", 1)[-1] if difference.what == "owner" else text) or "-"

"""MigrateReport -> blocks."""

from collections.abc import Iterator

from ckptool.render import Style
from ckptool.render.blocks import Block, Lines, Verdict, grid
from ckptool.report import MigrateReport


def migration(report: MigrateReport, style: Style) -> Iterator[Block]:
    yield Verdict(report.verdict, bool(report.exit_code))
    if style.verbosity < 0:
        return
    place = f" at `{report.at}`" if report.at else ""
    into = f" for {report.module}" if report.module else ""
    target = report.target or "nothing written"
    passed = [f"checked: {c.name}: {c.reason}" for c in report.checks if c.result == "passed"]
    yield Lines((f"{report.source}{place}{into} -> {target}", *passed, *report.notes))
    rows = [(s.op, s.before, s.after, s.source or "-", s.why) for s in report.steps]
    if rows:
        yield grid("Plan", ("step", "before", "after", "value from", "why"), rows, style)
    lost = [f"{s.op} {s.before} loses {s.loses}" for s in report.steps if s.loses]
    if lost:
        yield Lines(tuple(lost))

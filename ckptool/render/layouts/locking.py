"""Reports on locks -> blocks."""

from collections.abc import Iterator

from ckptool.render import Style
from ckptool.render.blocks import Block, Lines, Verdict, grid
from ckptool.render.text import count
from ckptool.report import LockReport


def lock(report: LockReport, style: Style) -> Iterator[Block]:
    """Yield what was locked, and what has changed."""
    yield Verdict(report.verdict, bool(report.exit_code))
    if style.verbosity < 0:
        return
    if report.golden:
        yield Lines((f"{report.name} with {report.golden} -> {report.path}", *report.notes))
        return
    held = f"{count(report.keys, 'key')} of the state_dict"
    unsaved = f", {count(report.unsaved, 'tensor')} beside it" if report.unsaved else ""
    yield Lines((f"{report.source} {report.name}: {held}{unsaved}", report.path))
    rows = [(d.key, d.what, d.old or "-", d.new or "-") for d in report.differences]
    if rows:
        title = "What the lock says, and what there is now"
        yield grid(title, ("key", "what", "in the lock", "now"), rows, style)

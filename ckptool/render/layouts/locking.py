"""LockReport -> blocks."""

from collections.abc import Iterator

from ckptool.render import Style
from ckptool.render.blocks import Block, Lines, Verdict, grid
from ckptool.render.text import count
from ckptool.report import DifferenceReport, LockReport


def lock(report: LockReport, style: Style) -> Iterator[Block]:
    """Yield the verdict, the counts and the differences from the previous lock."""
    yield Verdict(report.verdict, bool(report.exit_code))
    if style.verbosity < 0:
        return
    if report.golden:
        yield Lines((f"{report.name} with {report.golden} -> {report.path}", *report.notes))
        return
    held = f"{count(report.keys, 'key')} of the state_dict"
    unsaved = f", {count(report.unsaved, 'tensor')} beside it" if report.unsaved else ""
    before = (f"taken from {report.name_before} before",) if report.name_before else ()
    yield Lines((f"{report.source} {report.name}: {held}{unsaved}", report.path, *before))
    rows = [(d.key, d.what, _short(d, d.old), _short(d, d.new)) for d in report.differences]
    if rows:
        title = "What the lock says, and what there is now"
        yield grid(title, ("key", "what", "in the lock", "now"), rows, style)


def _short(difference: DifferenceReport, text: str) -> str:
    """Strip the package from an owner's class name; other text is unchanged, "" becomes "-"."""
    return (text.rsplit(".", 1)[-1] if difference.what == "owner" else text) or "-"

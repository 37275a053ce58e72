"""Report -> Page: verdict, findings, charts, tables and skipped checks."""

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import UnsetType

from ckptool.render import Style
from ckptool.render.blocks import Block, Grid, Lines, Tree, Verdict, silenced_lines, skipped_lines
from ckptool.render.html import drawn
from ckptool.render.html.findings import grouped
from ckptool.render.html.heads import facts, lead
from ckptool.render.html.parts import Page, Part, Table, Text, Words, words
from ckptool.render.html.shades import pictures
from ckptool.render.layout import body
from ckptool.report import AnyReport, GateReport, InspectReport

_TONES: Final = {0: "passed", 1: "failed", 2: "unknown"}
_TABLE: Final = "table-"
_MOST_LINKS: Final = 9
_EXITS: Final = {
    0: "Exit code 0: passed",
    1: "Exit code 1: something was found, or two things differ",
    2: "Exit code 2: could not check everything",
}


def page(report: AnyReport, style: Style) -> Page:
    """Build the page of `report`; a negative verbosity leaves only verdict and summary lines."""
    blocks = list(body(report, style))
    verdict = _verdict(report, blocks)
    wanted = _parts(report, blocks, style) if style.verbosity >= 0 else iter(())
    parts = tuple(part for part in wanted if part is not None)
    return Page(
        command=report.command,
        title=verdict,
        verdict=words(verdict),
        tone=_TONES[report.exit_code],
        exit_words=_EXITS[report.exit_code],
        lead=lead(report) or _lines(blocks[:2]),
        facts=facts(report) if style.verbosity >= 0 else (),
        parts=parts,
        links=_links(parts),
    )


def _links(parts: tuple[Part, ...]) -> tuple[tuple[str, str], ...]:
    """Return (id, title) of the navigation; one link for all tables if sections are many."""
    if len(parts) <= _MOST_LINKS:
        return tuple((part.id, part.title) for part in parts)
    tables = [part.id for part in parts if part.id.startswith(_TABLE)]
    others = [(part.id, part.title) for part in parts if not part.id.startswith(_TABLE)]
    return (*others, *((id_, "All tables") for id_ in tables[:1]))


def _verdict(report: AnyReport, blocks: list[Block]) -> str:
    said = [block.text for block in blocks if isinstance(block, Verdict)]
    if isinstance(report, InspectReport):
        return f"{len(said)} checkpoints" if len(said) != 1 else report.checkpoints[0].path
    return said[0] if said else f"ckptool {report.command}"


def _lines(blocks: Iterable[Block]) -> tuple[Words, ...]:
    return tuple(words(line) for b in blocks if isinstance(b, Lines) for line in b.lines)


def _parts(report: AnyReport, blocks: list[Block], style: Style) -> Iterator[Part | None]:
    several = isinstance(report, GateReport | InspectReport) and len(report.checkpoints) > 1
    yield from grouped(report.findings, style, several=several)
    yield _told("silenced", "Findings that do not count", silenced_lines(report.silenced))
    yield drawn.state(report, style)
    if not isinstance(report.drawing, UnsetType):
        yield pictures("values", "Values of small buffers", report.drawing.pictures)
    yield from drawn.sizes(report)
    yield from _tables(report, blocks)
    yield _told("skipped", "Not checked", skipped_lines(report.skipped))


def _tables(report: AnyReport, blocks: list[Block]) -> Iterator[Part]:
    """Yield the tables and lines that every format shows, in block order."""
    several = isinstance(report, InspectReport) and len(report.checkpoints) > 1
    for number, block in enumerate(blocks):
        id_ = f"{_TABLE}{number}"
        match block:
            case Grid():
                yield _table(id_, block)
            case Tree():
                yield _table(id_, block.flat)
            case Verdict() if several:
                yield Text(id=id_, title=block.text.split(": ", 1)[0], lines=(words(block.text),))
            case Lines() if number > 1:
                yield Text(id=id_, title="Notes", lines=_lines([block]))
            case _:
                pass


def _table(id_: str, grid: Grid) -> Table:
    title = grid.title.replace("`", "")
    return Table(id=id_, title=title, headers=grid.headers, rows=grid.rows, more=grid.more)


def _told(id_: str, title: str, blocks: Iterable[Lines]) -> Text | None:
    lines = tuple(line.removeprefix("not checked: ") for one in blocks for line in one.lines)
    return Text(id=id_, title=title, lines=tuple(map(words, lines))) if lines else None

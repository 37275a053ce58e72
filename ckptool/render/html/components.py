"""Structs that the Jinja templates read; a PageSection names its template."""

from typing import ClassVar

from msgspec import Struct

from ckptool.render.blocks import Column
from ckptool.render.text import split_code_spans, split_commands

InlineText = tuple[tuple[bool, str], ...]
"""Pieces of text as (is code, text)."""
TableCells = tuple[str, ...]


class PageSection(Struct, frozen=True, kw_only=True):
    """A section of the page; `id` is its HTML id."""

    template: ClassVar[str]
    id: str
    title: str


class FindingLine(Struct, frozen=True):
    """What is wrong, of one key or of several that differ in layer numbers only."""

    message: InlineText
    fix: InlineText
    """() if all lines of the card share one fix."""


class FindingCard(Struct, frozen=True):
    """One cause, what follows from it, and one fix."""

    code: str
    name: str
    level: str
    fix: InlineText
    """The fix that all lines share, or that of the first line; () if each line has its own."""
    fix_label: InlineText
    """What precedes the fix."""
    lines: tuple[FindingLine, ...]
    more: int
    """Number of lines that are left out."""
    consequences: tuple[InlineText, ...]
    follows_text: str
    """What precedes the consequences."""


class FindingsSection(PageSection, frozen=True, kw_only=True):
    template = "findings.html"
    summary: str
    cards: tuple[FindingCard, ...]


class SideBySideRow(Struct, frozen=True):
    """A row of the side-by-side tree: a module or a tensor."""

    depth: int
    prefix: str
    """Path of the enclosing module with a trailing dot, "" at the root."""
    name: str
    count: int
    left: str
    right: str
    status: str
    tone: str
    """"ok", "bad" or "module"."""


class SideBySideSection(PageSection, frozen=True, kw_only=True):
    template = "tree.html"
    sides: tuple[str, str]
    rows: tuple[SideBySideRow, ...]
    more: int


class TreemapTile(Struct, frozen=True):
    """A rectangle of the treemap: one tensor, or several too small or too many to draw."""

    x: float
    y: float
    width: float
    height: float
    tone: str
    is_marked: bool
    key: str
    label: str
    """"" if the tile is too small for one."""
    size: str
    description: str


class ModuleFrame(Struct, frozen=True):
    """The outline and title of a module around its tiles."""

    x: float
    y: float
    width: float
    height: float
    label: str
    key: str


class LegendEntry(Struct, frozen=True):
    """An entry of a treemap's legend, with the count and size of its tensors."""

    tone: str
    description: str
    count: int
    size: str


class TreemapSection(PageSection, frozen=True, kw_only=True):
    template = "treemap.html"
    width: int
    height: int
    summary: str
    has_merged_tiles: bool
    """Whether some tile stands for several tensors."""
    colour_meaning: str
    """Meaning of the colours: "dtype" or "relative change"."""
    frames: tuple[ModuleFrame, ...]
    tiles: tuple[TreemapTile, ...]
    legend: tuple[LegendEntry, ...]
    mark_meaning: str
    """Meaning of a dashed outline, "" if none is drawn."""


class DtypeShare(Struct, frozen=True):
    """Tensors and bytes of one dtype."""

    name: str
    tone: str
    count: int
    size: str
    percent: float


class DtypeSharesSection(PageSection, frozen=True, kw_only=True):
    template = "shares.html"
    shares: tuple[DtypeShare, ...]


class HeatmapShade(Struct, frozen=True):
    """One shade of a heatmap, with the count of its cells."""

    tone: str
    label: str
    count: int
    path: str
    """SVG path of its cells."""


class TensorHeatmap(Struct, frozen=True):
    """Values of one tensor as a heatmap; `columns` and `height` are in cells."""

    heading: str
    caption: str
    columns: int
    height: int
    pixels: tuple[int, int]
    shades: tuple[HeatmapShade, ...]
    cells: tuple[TableCells, ...]
    """Labels of the cells, () if they are too many for a table."""
    texts: tuple[tuple[float, float, str, str], ...]
    """(x, y, tone, number) of each cell, () if there is no room."""


class KeyHeatmaps(Struct, frozen=True):
    """Heatmaps of one key: of a file, of a module, or of both."""

    key: str
    """With "*" for layer numbers if several layers have the same values."""
    count: int
    legend: tuple[tuple[str, str], ...]
    heatmaps: tuple[TensorHeatmap, ...]


class HeatmapsSection(PageSection, frozen=True, kw_only=True):
    template = "pictures.html"
    groups: tuple[KeyHeatmaps, ...]
    omitted_keys: tuple[str, ...]


class HistogramBar(Struct, frozen=True):
    """One decade of a histogram."""

    x: float
    y: float
    height: float
    range_text: str
    count: int


class ChangeHistogram(Struct, frozen=True):
    """Histogram of the absolute differences of one tensor's elements."""

    key: str
    caption: str
    bars: tuple[HistogramBar, ...]


class HistogramsSection(PageSection, frozen=True, kw_only=True):
    template = "histograms.html"
    histograms: tuple[ChangeHistogram, ...]
    more: int


class TableSection(PageSection, frozen=True, kw_only=True):
    template = "table.html"
    columns: tuple[Column, ...]
    rows: tuple[TableCells, ...]
    more: str


class CodeSection(PageSection, frozen=True, kw_only=True):
    template = "code.html"
    text: str


class TextSection(PageSection, frozen=True, kw_only=True):
    template = "text.html"
    lines: tuple[InlineText, ...]


class Page(Struct, frozen=True):
    """The HTML page."""

    command: str
    title: str
    verdict: InlineText
    tone: str
    """"passed", "failed" or "unknown"."""
    exit_text: str
    summary: tuple[InlineText, ...]
    facts: tuple[tuple[str, str], ...]
    """(formatted number or word, label)."""
    sections: tuple[PageSection, ...]
    links: tuple[tuple[str, str], ...]
    """(id, title) of the navigation."""


def split_fix(text: str) -> InlineText:
    """Split the text of a fix as `split_code_spans` does; commands in it are code as well."""
    return tuple(
        part
        for is_command, piece in split_commands(text)
        for part in ([(True, piece)] if is_command else split_code_spans(piece))
    )

"""Structs that the Jinja templates read; a PageSection names its template."""

from typing import ClassVar

from msgspec import Struct

Words = tuple[tuple[bool, str], ...]
"""Pieces of text as (is code, text)."""
Row = tuple[str, ...]


class Part(Struct, frozen=True, kw_only=True):
    """A section of the page; `id` is its HTML id."""

    template: ClassVar[str]
    id: str
    title: str


class Said(Struct, frozen=True):
    """One finding, or several that differ in layer numbers only."""

    message: Words
    fix: Words
    """() if all findings of the rule share one fix."""


class Group(Struct, frozen=True):
    """The findings of one rule."""

    code: str
    name: str
    level: str
    count: int
    fix: Words
    """The fix that all findings share, else ()."""
    said: tuple[Said, ...]
    more: int
    """Number of findings that have no card."""


class Findings(Part, frozen=True, kw_only=True):
    template = "findings.html"
    summary: str
    groups: tuple[Group, ...]


class Line(Struct, frozen=True):
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


class Tree(Part, frozen=True, kw_only=True):
    template = "tree.html"
    sides: tuple[str, str]
    lines: tuple[Line, ...]
    more: int


class Tile(Struct, frozen=True):
    """A rectangle of the treemap: one tensor, or several too small or too many to draw."""

    x: float
    y: float
    width: float
    height: float
    tone: str
    marked: bool
    key: str
    label: str
    """"" if the tile is too small for one."""
    size: str
    words: str


class Frame(Struct, frozen=True):
    """The outline and title of a module around its tiles."""

    x: float
    y: float
    width: float
    height: float
    label: str
    key: str


class Meaning(Struct, frozen=True):
    """An entry of a treemap's legend, with the count and size of its tensors."""

    tone: str
    words: str
    count: int
    size: str


class Treemap(Part, frozen=True, kw_only=True):
    template = "treemap.html"
    width: int
    height: int
    summary: str
    merged: bool
    """Whether some tile stands for several tensors."""
    colour: str
    """Meaning of the colours: "dtype" or "relative change"."""
    frames: tuple[Frame, ...]
    tiles: tuple[Tile, ...]
    legend: tuple[Meaning, ...]
    mark: str
    """Meaning of a dashed outline, "" if none is drawn."""


class Share(Struct, frozen=True):
    """Tensors and bytes of one dtype."""

    name: str
    tone: str
    count: int
    size: str
    percent: float


class Shares(Part, frozen=True, kw_only=True):
    template = "shares.html"
    shares: tuple[Share, ...]


class Shade(Struct, frozen=True):
    """One shade of a heatmap, with the count of its cells."""

    tone: str
    label: str
    count: int
    path: str
    """SVG path of its cells."""


class Picture(Struct, frozen=True):
    """Values of one tensor as a heatmap; `columns` and `height` are in cells."""

    of: str
    words: str
    columns: int
    height: int
    pixels: tuple[int, int]
    shades: tuple[Shade, ...]
    cells: tuple[Row, ...]
    """Labels of the cells, () if they are too many for a table."""
    texts: tuple[tuple[float, float, str, str], ...]
    """(x, y, tone, number) of each cell, () if there is no room."""


class Pair(Struct, frozen=True):
    """Heatmaps of one key: of a file, of a module, or of both."""

    key: str
    """With "*" for layer numbers if several layers have the same values."""
    count: int
    legend: tuple[tuple[str, str], ...]
    pictures: tuple[Picture, ...]


class Pictures(Part, frozen=True, kw_only=True):
    template = "pictures.html"
    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...]


class Bar(Struct, frozen=True):
    """One decade of a histogram."""

    x: float
    y: float
    height: float
    words: str
    count: int


class Histogram(Struct, frozen=True):
    """Histogram of the absolute differences of one tensor's elements."""

    key: str
    words: str
    bars: tuple[Bar, ...]


class Histograms(Part, frozen=True, kw_only=True):
    template = "histograms.html"
    histograms: tuple[Histogram, ...]
    more: int


class Table(Part, frozen=True, kw_only=True):
    template = "table.html"
    headers: tuple[str, ...]
    rows: tuple[Row, ...]
    more: str


class Text(Part, frozen=True, kw_only=True):
    template = "text.html"
    lines: tuple[Words, ...]


class Page(Struct, frozen=True):
    """The HTML page."""

    command: str
    title: str
    verdict: Words
    tone: str
    """"passed", "failed" or "unknown"."""
    exit_words: str
    lead: tuple[Words, ...]
    facts: tuple[tuple[str, str], ...]
    """(formatted number or word, label)."""
    parts: tuple[Part, ...]
    links: tuple[tuple[str, str], ...]
    """(id, title) of the navigation."""


def words(text: str) -> Words:
    """Split `text` at backticks into code and plain pieces; unpaired backticks stay text."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return ((False, text),)
    return tuple((bool(i % 2), piece) for i, piece in enumerate(pieces) if piece)

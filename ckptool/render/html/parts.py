"""What a page is made of: the structs that the templates read, one template for each part."""

from typing import ClassVar

from msgspec import Struct

Words = tuple[tuple[bool, str], ...]
"""Text in pieces, each with whether it is code."""
Row = tuple[str, ...]


class Part(Struct, frozen=True, kw_only=True):
    """A section of the page."""

    template: ClassVar[str]
    id: str
    title: str


class Said(Struct, frozen=True):
    """A finding, or several that differ in layer numbers only."""

    message: Words
    fix: Words
    """() where the group's fix is this one's."""


class Group(Struct, frozen=True):
    """The findings of one rule."""

    code: str
    name: str
    level: str
    count: int
    fix: Words
    """Where all have the same; else ()."""
    said: tuple[Said, ...]
    more: int
    """How many are only counted."""


class Findings(Part, frozen=True, kw_only=True):
    template = "findings.html"
    summary: str
    groups: tuple[Group, ...]


class Line(Struct, frozen=True):
    """A row of the tree: a module, or a tensor of it."""

    depth: int
    prefix: str
    """Path of the module that it is in, with its dot."""
    name: str
    count: int
    left: str
    right: str
    status: str
    tone: str
    """"", "ok" or "bad"."""


class Tree(Part, frozen=True, kw_only=True):
    template = "tree.html"
    sides: tuple[str, str]
    lines: tuple[Line, ...]
    more: int


class Tile(Struct, frozen=True):
    """A rectangle of the treemap: a tensor, or what is too small or too much to be drawn."""

    x: float
    y: float
    width: float
    height: float
    tone: str
    marked: bool
    key: str
    label: str
    """"" where there is no room."""
    size: str
    words: str


class Frame(Struct, frozen=True):
    """The module around tiles."""

    x: float
    y: float
    width: float
    height: float
    label: str
    key: str


class Meaning(Struct, frozen=True):
    """A line of a legend."""

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
    """Whether some tile is several tensors."""
    colour: str
    """What the colour says: "dtype"."""
    frames: tuple[Frame, ...]
    tiles: tuple[Tile, ...]
    legend: tuple[Meaning, ...]
    mark: str
    """What a dashed outline says, "" where none is drawn."""


class Share(Struct, frozen=True):
    """What one dtype takes."""

    name: str
    tone: str
    count: int
    size: str
    percent: float


class Shares(Part, frozen=True, kw_only=True):
    template = "shares.html"
    shares: tuple[Share, ...]


class Shade(Struct, frozen=True):
    """One shade of a picture."""

    tone: str
    label: str
    count: int
    path: str
    """Its cells, as an SVG path."""


class Picture(Struct, frozen=True):
    """The values of one tensor."""

    of: str
    words: str
    columns: int
    height: int
    pixels: tuple[int, int]
    shades: tuple[Shade, ...]
    cells: tuple[Row, ...]
    """Labels, where they are few enough for a table."""
    texts: tuple[tuple[float, float, str, str], ...]
    """Place, shade and number of each cell, where there is room for them."""


class Pair(Struct, frozen=True):
    """The pictures of one key: of a file, of a module, or of both."""

    key: str
    """With "*" for the numbers of layers, where several have the same values."""
    count: int
    legend: tuple[tuple[str, str], ...]
    pictures: tuple[Picture, ...]


class Pictures(Part, frozen=True, kw_only=True):
    template = "pictures.html"
    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...]


class Bar(Struct, frozen=True):
    """One range of a histogram."""

    x: float
    y: float
    height: float
    words: str
    count: int


class Histogram(Struct, frozen=True):
    """How far the elements of one tensor moved."""

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
    """The whole."""

    command: str
    title: str
    verdict: Words
    tone: str
    """"passed", "failed" or "unknown"."""
    exit_words: str
    lead: tuple[Words, ...]
    facts: tuple[tuple[str, str], ...]
    """Number or word, and what it counts."""
    parts: tuple[Part, ...]
    links: tuple[tuple[str, str], ...]
    """Id and title of what is worth going to."""


def words(text: str) -> Words:
    """Return `text` in pieces, of which those in backticks are code."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return ((False, text),)
    return tuple((bool(i % 2), piece) for i, piece in enumerate(pieces) if piece)

"""PictureReport -> HeatmapsSection: one SVG path for each shade, and the numbers."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from ckptool.render.html.parts import Pair, Picture, Pictures, Shade
from ckptool.render.text import fold
from ckptool.report import PictureReport

SHADES: Final = 7
_ODD: Final = {"-inf": "n0", "inf": "n1", "NaN": "n2"}
_SIDE: Final = 216
_CELL: Final = 30
_SPACED: Final = 16
"""Maximum rows or columns for which cells are drawn one by one."""
_NUMBERED: Final = 8
"""Maximum rows or columns for which cells show their numbers."""
_TABLE: Final = 16
_MOST_PAIRS: Final = 12
_MOST_PATHS: Final = 80_000
"""Maximum characters of all SVG paths, so that the page stays small enough to send."""
_WHOSE: Final = {
    "file": "In the file",
    "module": "As the module makes it",
    "old": "In the old file",
    "new": "In the new file",
}


def pictures(id_: str, title: str, drawn: Sequence[PictureReport]) -> Pictures | None:
    """Build the heatmaps by key; None if there are no pictures."""
    pairs: list[Pair] = []
    left_out: list[str] = []
    length = 0
    keys = groupby(drawn, key=lambda one: one.key)
    alike = fold((key, _content(sides), sides) for key, group in keys for sides in [list(group)])
    for one in alike:
        pair = _pair(one.key, len(one.items), one.items[0])
        length += sum(len(shade.path) for drawn in pair.pictures for shade in drawn.shades)
        if len(pairs) < _MOST_PAIRS and length <= _MOST_PATHS:
            pairs.append(pair)
        else:
            left_out.append(pair.key)
    if not pairs:
        return None
    return Pictures(id=id_, title=title, pairs=tuple(pairs), left_out=tuple(left_out))


def _content(sides: list[PictureReport]) -> tuple[object, ...]:
    return tuple((one.of, one.dtype, one.shape, one.legend, one.rows) for one in sides)


def _pair(key: str, number: int, sides: list[PictureReport]) -> Pair:
    tones = tuple(_tone(i, sides[0]) for i in range(len(sides[0].legend)))
    legend = zip(tones, sides[0].legend, strict=True)
    return Pair(key, number, tuple(legend), tuple(_picture(side, tones) for side in sides))


def _tone(place: int, picture: PictureReport) -> str:
    if place >= picture.finite:
        return _ODD[picture.legend[place]]
    most = picture.finite - 1
    return f"v{round(place * (SHADES - 1) / most)}" if most else "v2"


def _picture(side: PictureReport, tones: tuple[str, ...]) -> Picture:
    rows, columns = len(side.rows), len(side.rows[0])
    largest = max(rows, columns)
    cell = min(_CELL, max(_SIDE // largest, 3))
    cells = [place for row in side.rows for place in row]
    exact = all(" to " not in label for label in side.legend)
    few = largest <= _NUMBERED and exact
    sample = "" if side.whole else f", {rows} x {columns} of its elements"
    return Picture(
        of=_WHOSE[side.of],
        words=f"{side.dtype} {list(side.shape)}{sample}",
        columns=columns,
        height=rows,
        pixels=(columns * cell, rows * cell),
        shades=tuple(
            Shade(tones[place], label, cells.count(place), _path(side.rows, place))
            for place, label in enumerate(side.legend)
            if place in cells
        ),
        cells=tuple(tuple(side.legend[p] for p in row) for row in side.rows)
        if largest <= _TABLE
        else (),
        texts=tuple(_texts(side, tones)) if few else (),
    )


def _path(rows: tuple[tuple[int, ...], ...], place: int) -> str:
    """Return the SVG path of one shade: single cells, or runs along a row in larger grids."""
    pieces: list[str] = []
    spaced = max(len(rows), len(rows[0])) <= _SPACED
    for y, row in enumerate(rows):
        if spaced:
            pieces += [f"M{x} {y}h.95v.95h-.95z" for x, p in enumerate(row) if p == place]
            continue
        x = 0
        for value, run in groupby(row):
            length = len(list(run))
            if value == place:
                pieces.append(f"M{x} {y}h{length}v1h-{length}z")
            x += length
    return "".join(pieces)


def _texts(side: PictureReport, tones: tuple[str, ...]) -> Iterator[tuple[float, float, str, str]]:
    for y, row in enumerate(side.rows):
        for x, place in enumerate(row):
            if len(side.legend[place]) <= 4:
                yield x + 0.475, y + 0.62, tones[place], side.legend[place]

"""PictureReport -> HeatmapsSection: one SVG path for each shade, and the numbers."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from ckptool.folding import fold_by_pattern
from ckptool.render.html.components import HeatmapShade, HeatmapsSection, KeyHeatmaps, TensorHeatmap
from ckptool.reports.common import PictureReport

SHADE_COUNT: Final = 7
_NON_FINITE_TONES: Final = {"-inf": "n0", "inf": "n1", "NaN": "n2"}
_TARGET_PIXELS: Final = 216
_MAX_CELL_PIXELS: Final = 30
_MAX_SEPARATE_CELLS: Final = 16
"""Maximum rows or columns for which cells are drawn one by one."""
_MAX_NUMBERED_CELLS: Final = 8
"""Maximum rows or columns for which cells show their numbers."""
_MAX_TABLE_CELLS: Final = 16
_MAX_GROUPS: Final = 12
_MAX_PATH_CHARACTERS: Final = 80_000
"""Maximum characters of all SVG paths, so that the page stays small enough to send."""
_HEADINGS: Final = {
    "file": "In the file",
    "module": "As the module computes it",
    "old": "In the old file",
    "new": "In the new file",
}


def build_heatmaps_section(
    id_: str, title: str, pictures: Sequence[PictureReport]
) -> HeatmapsSection | None:
    """Build the heatmaps by key; None if there are no pictures."""
    groups: list[KeyHeatmaps] = []
    omitted_keys: list[str] = []
    length = 0
    pictures_by_key = groupby(pictures, key=lambda picture: picture.key)
    folded_pictures = fold_by_pattern(
        (key, _get_content_key(sides), sides)
        for key, key_pictures in pictures_by_key
        for sides in [list(key_pictures)]
    )
    for picture_group in folded_pictures:
        key_heatmaps = _build_key_heatmaps(
            picture_group.key, len(picture_group.items), picture_group.items[0]
        )
        length += sum(
            len(shade.path) for heatmap in key_heatmaps.heatmaps for shade in heatmap.shades
        )
        if len(groups) < _MAX_GROUPS and length <= _MAX_PATH_CHARACTERS:
            groups.append(key_heatmaps)
        else:
            omitted_keys.append(key_heatmaps.key)
    if not groups:
        return None
    return HeatmapsSection(
        id=id_, title=title, groups=tuple(groups), omitted_keys=tuple(omitted_keys)
    )


def _get_content_key(sides: list[PictureReport]) -> tuple[object, ...]:
    return tuple(
        (picture.of, picture.dtype, picture.shape, picture.legend, picture.rows)
        for picture in sides
    )


def _build_key_heatmaps(key: str, count: int, sides: list[PictureReport]) -> KeyHeatmaps:
    tones = tuple(_select_tone(i, sides[0]) for i in range(len(sides[0].legend)))
    legend = zip(tones, sides[0].legend, strict=True)
    return KeyHeatmaps(
        key, count, tuple(legend), tuple(_build_heatmap(picture, tones) for picture in sides)
    )


def _select_tone(shade_index: int, picture: PictureReport) -> str:
    if shade_index >= picture.finite:
        return _NON_FINITE_TONES[picture.legend[shade_index]]
    max_index = picture.finite - 1
    return f"v{round(shade_index * (SHADE_COUNT - 1) / max_index)}" if max_index else "v2"


def _build_heatmap(picture: PictureReport, tones: tuple[str, ...]) -> TensorHeatmap:
    rows, columns = len(picture.rows), len(picture.rows[0])
    largest = max(rows, columns)
    cell = min(_MAX_CELL_PIXELS, max(_TARGET_PIXELS // largest, 3))
    cells = [shade_index for row in picture.rows for shade_index in row]
    exact = all(" to " not in label for label in picture.legend)
    show_numbers = largest <= _MAX_NUMBERED_CELLS and exact
    sample = "" if picture.whole else f", {rows} x {columns} of its elements"
    return TensorHeatmap(
        heading=_HEADINGS[picture.of],
        caption=f"{picture.dtype} {list(picture.shape)}{sample}",
        columns=columns,
        height=rows,
        pixels=(columns * cell, rows * cell),
        shades=tuple(
            HeatmapShade(
                tones[shade_index],
                label,
                cells.count(shade_index),
                _build_shade_path(picture.rows, shade_index),
            )
            for shade_index, label in enumerate(picture.legend)
            if shade_index in cells
        ),
        cells=tuple(
            tuple(picture.legend[shade_index] for shade_index in row) for row in picture.rows
        )
        if largest <= _MAX_TABLE_CELLS
        else (),
        texts=tuple(_iter_cell_texts(picture, tones)) if show_numbers else (),
    )


def _build_shade_path(rows: tuple[tuple[int, ...], ...], shade_index: int) -> str:
    """Return the SVG path of one shade: single cells, or runs along a row in larger grids."""
    pieces: list[str] = []
    separate_cells = max(len(rows), len(rows[0])) <= _MAX_SEPARATE_CELLS
    for y, row in enumerate(rows):
        if separate_cells:
            pieces += [
                f"M{x} {y}h.95v.95h-.95z" for x, value in enumerate(row) if value == shade_index
            ]
            continue
        x = 0
        for value, run in groupby(row):
            length = len(list(run))
            if value == shade_index:
                pieces.append(f"M{x} {y}h{length}v1h-{length}z")
            x += length
    return "".join(pieces)


def _iter_cell_texts(
    picture: PictureReport, tones: tuple[str, ...]
) -> Iterator[tuple[float, float, str, str]]:
    for y, row in enumerate(picture.rows):
        for x, shade_index in enumerate(row):
            if len(picture.legend[shade_index]) <= 4:
                yield x + 0.475, y + 0.62, tones[shade_index], picture.legend[shade_index]

"""Fit table rows to the terminal width: wrap prose, truncate keys and other cells."""

from collections.abc import Sequence
from math import ceil
from textwrap import wrap
from typing import Final

from tabulate import MIN_PADDING

from ckptool.render.blocks import Column, ColumnKind
from ckptool.render.text import truncate_middle

COLUMN_GAP: Final = 2
"""Blank columns between two cells."""
_FIXED_KINDS: Final = (ColumnKind.EXACT, ColumnKind.NUMBER)
_MIN_KEY_WIDTH: Final = 16
_MIN_PROSE_WIDTH: Final = 20
_MIN_WIDTH: Final = 4
_BRANCHES: Final = " \u2502\u251c\u2514\u2500|`-"
"""What precedes the name of a row of a tree."""
_MIN_CUT_WIDTH: Final = 40
"""Width of a cell up to which the other cells of its column are padded to it."""
_MAX_PADDED_WIDTH: Final = 80
"""Width to which cells are padded without a terminal, unless half of the column is wider."""
_WRAPPED_KINDS: Final = (ColumnKind.PROSE, ColumnKind.WORDS)


def fit_columns(rows: list[list[str]], columns: Sequence[Column], width: int) -> list[list[str]]:
    """Return `rows` so that no line of the table exceeds `width`, down to the minimum widths.

    Args:
        rows: cells of one line each; the first is the key.
        columns: one for each cell of a row.
        width: columns of the terminal.
    """
    widths = measure_column_widths(rows, columns)
    cells = [*zip(*rows, strict=True)]
    min_widths = [_compute_min_width(i, column, cells[i]) for i, column in enumerate(columns)]
    excess = sum(widths) + COLUMN_GAP * (len(widths) - 1) - width
    for i in sorted(range(len(widths)), key=lambda i: _get_shrink_rank(i, columns, widths)):
        if excess > 0:
            reduction = min(excess, widths[i] - min_widths[i])
            widths[i] -= reduction
            excess -= reduction
    return [
        [
            _shorten_cell(cell, cell_width, column.kind)
            for cell, cell_width, column in zip(row, widths, columns, strict=True)
        ]
        for row in rows
    ]


def measure_padded_width(cells: Sequence[str]) -> int:
    """Return the width to which a column's cells are padded where lines may have any width.

    Longer cells push aside the rest of their row alone, so that one long key does not make every
    row long.
    """
    lengths = sorted(map(len, cells))
    if lengths[-1] <= _MIN_CUT_WIDTH:
        return lengths[-1]
    median, common = (lengths[ceil((len(lengths) - 1) * share)] for share in (0.5, 0.95))
    return max(median, min(common, _MAX_PADDED_WIDTH))


def measure_column_widths(rows: list[list[str]], columns: Sequence[Column]) -> list[int]:
    """Return the width in characters that tabulate gives to each column."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)] or [0] * len(columns)
    return [
        max(len(column.header) + MIN_PADDING, width)
        for column, width in zip(columns, widths, strict=True)
    ]


def _compute_min_width(index: int, column: Column, cells: Sequence[str]) -> int:
    natural_width = max(len(column.header) + MIN_PADDING, *map(len, cells))
    if column.kind in _FIXED_KINDS:
        return natural_width
    if column.kind is ColumnKind.PROSE:
        floor = _MIN_PROSE_WIDTH
    elif column.kind is ColumnKind.WORDS:
        floor = max((len(word) for cell in cells for word in cell.split(" ")), default=0)
    else:
        floor = _MIN_WIDTH if index else _MIN_KEY_WIDTH
    return min(natural_width, max(floor, len(column.header) + MIN_PADDING))


def _get_shrink_rank(
    index: int, columns: Sequence[Column], widths: Sequence[int]
) -> tuple[int, int]:
    """Return the sort key of shrinking: prose, which wraps; the key; the widest name; words.

    Shapes and words are wrapped last: a row of one line is easier to read.
    """
    kind = columns[index].kind
    if kind is ColumnKind.PROSE:
        return 0, -index
    if index == 0:
        return 1, 0
    return (3, -index) if kind is ColumnKind.WORDS else (2, -widths[index])


def _shorten_cell(cell: str, width: int, kind: ColumnKind) -> str:
    if len(cell) <= width:
        return cell
    if kind not in _WRAPPED_KINDS:
        branches = cell[: len(cell) - len(cell.lstrip(_BRANCHES))]
        if width - len(branches) < _MIN_WIDTH:
            branches = ""
        return branches + truncate_middle(cell[len(branches) :], width - len(branches))
    is_prose = kind is ColumnKind.PROSE
    return "\n".join(wrap(cell, width, break_long_words=is_prose, break_on_hyphens=False))

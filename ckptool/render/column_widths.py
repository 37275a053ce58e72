"""Fit table rows to the terminal width: wrap prose, truncate keys and other cells."""

from collections.abc import Sequence
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


def fit_columns(rows: list[list[str]], columns: Sequence[Column], width: int) -> list[list[str]]:
    """Return `rows` so that no line of the table exceeds `width`, down to the minimum widths.

    Args:
        rows: cells of one line each; the first is the key.
        columns: one for each cell of a row.
        width: columns of the terminal.
    """
    widths = measure_column_widths(rows, columns)
    min_widths = [_compute_min_width(i, column, widths[i]) for i, column in enumerate(columns)]
    excess = sum(widths) + COLUMN_GAP * (len(widths) - 1) - width
    for i in sorted(range(len(widths)), key=lambda i: _get_shrink_rank(i, columns)):
        if excess > 0:
            reduction = min(excess, widths[i] - min_widths[i])
            widths[i] -= reduction
            excess -= reduction
    prose_columns = [column.kind is ColumnKind.PROSE for column in columns]
    return [
        [
            _shorten_cell(cell, cell_width, prose=is_prose)
            for cell, cell_width, is_prose in zip(row, widths, prose_columns, strict=True)
        ]
        for row in rows
    ]


def measure_column_widths(rows: list[list[str]], columns: Sequence[Column]) -> list[int]:
    """Return the width in characters that tabulate gives to each column."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)] or [0] * len(columns)
    return [
        max(len(column.header) + MIN_PADDING, width)
        for column, width in zip(columns, widths, strict=True)
    ]


def _compute_min_width(index: int, column: Column, natural_width: int) -> int:
    if column.kind in _FIXED_KINDS:
        return natural_width
    if column.kind is ColumnKind.PROSE:
        floor = _MIN_PROSE_WIDTH
    else:
        floor = _MIN_WIDTH if index else _MIN_KEY_WIDTH
    return min(natural_width, max(floor, len(column.header) + MIN_PADDING))


def _get_shrink_rank(index: int, columns: Sequence[Column]) -> tuple[int, int]:
    """Return the sort key of shrinking: prose first (it wraps), then keys, then from the right."""
    if columns[index].kind is ColumnKind.PROSE:
        return (0, -index)
    return (2, -index) if index else (1, 0)


def _shorten_cell(cell: str, width: int, *, prose: bool) -> str:
    if len(cell) <= width:
        return cell
    return (
        "\n".join(wrap(cell, width, break_on_hyphens=False))
        if prose
        else truncate_middle(cell, width)
    )

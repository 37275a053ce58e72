"""Fit table rows to the terminal width: wrap prose, truncate keys and other cells."""

from textwrap import wrap
from typing import Final

from tabulate import MIN_PADDING

from ckptool.render.text import truncate_middle

COLUMN_GAP: Final = 2
"""Blank columns between two cells."""
_PROSE_HEADERS: Final = frozenset(
    {"why", "why, and what was seen", "holds", "value", "reason", "fix"}
)
_NUMBER_HEADERS: Final = frozenset({"count", "size", "max abs", "relative", "changed", "rule"})
"""Columns that are never truncated: a truncated number is meaningless or wrong."""
_MIN_KEY_WIDTH: Final = 16
_MIN_PROSE_WIDTH: Final = 20
_MIN_WIDTH: Final = 4


def fit_columns(rows: list[list[str]], headers: list[str], width: int) -> list[list[str]]:
    """Return `rows` so that no line of the table exceeds `width`, down to the minimum widths.

    Args:
        rows: cells of one line each; the first is the key.
        headers: one for each column; prose and number columns are recognized by header.
        width: columns of the terminal.
    """
    widths = measure_column_widths(rows, headers)
    min_widths = [_compute_min_width(i, name, widths[i]) for i, name in enumerate(headers)]
    excess = sum(widths) + COLUMN_GAP * (len(widths) - 1) - width
    for column in sorted(range(len(widths)), key=lambda i: _get_shrink_rank(i, headers)):
        if excess > 0:
            reduction = min(excess, widths[column] - min_widths[column])
            widths[column] -= reduction
            excess -= reduction
    prose_columns = [name in _PROSE_HEADERS for name in headers]
    return [
        [
            _shorten_cell(cell, cell_width, prose=is_prose)
            for cell, cell_width, is_prose in zip(row, widths, prose_columns, strict=True)
        ]
        for row in rows
    ]


def measure_column_widths(rows: list[list[str]], headers: list[str]) -> list[int]:
    """Return the width in characters that tabulate gives to each column."""
    cells = [max(map(len, column)) for column in zip(*rows, strict=True)] or [0] * len(headers)
    return [max(len(h) + MIN_PADDING, w) for h, w in zip(headers, cells, strict=True)]


def _compute_min_width(column: int, header: str, natural_width: int) -> int:
    if header in _NUMBER_HEADERS:
        return natural_width
    floor = (
        _MIN_PROSE_WIDTH if header in _PROSE_HEADERS else _MIN_WIDTH if column else _MIN_KEY_WIDTH
    )
    return min(natural_width, max(floor, len(header) + MIN_PADDING))


def _get_shrink_rank(column: int, headers: list[str]) -> tuple[int, int]:
    """Return the sort key of shrinking: prose first (it wraps), then keys, then from the right."""
    return (
        (0, -column)
        if headers[column] in _PROSE_HEADERS
        else (1, 0)
        if column == 0
        else (2, -column)
    )


def _shorten_cell(cell: str, width: int, *, prose: bool) -> str:
    if len(cell) <= width:
        return cell
    return (
        "\n".join(wrap(cell, width, break_on_hyphens=False))
        if prose
        else truncate_middle(cell, width)
    )

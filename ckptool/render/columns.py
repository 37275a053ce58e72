"""Fit table rows to the terminal width: wrap prose, truncate keys and other cells."""

from textwrap import wrap
from typing import Final

from tabulate import MIN_PADDING

from ckptool.render.text import cut

GAP: Final = 2
"""Blank columns between two cells."""
_PROSE: Final = frozenset({"why", "why, and what was seen", "holds", "value", "reason", "fix"})
_NUMBERS: Final = frozenset({"count", "size", "max abs", "relative", "changed", "rule"})
"""Columns that are never truncated: a truncated number is meaningless or wrong."""
_NARROWEST_KEY: Final = 16
_NARROWEST_PROSE: Final = 20
_NARROWEST: Final = 4


def fit(rows: list[list[str]], headers: list[str], width: int) -> list[list[str]]:
    """Return `rows` so that no line of the table exceeds `width`, down to the minimum widths.

    Args:
        rows: cells of one line each; the first is the key.
        headers: one for each column; prose and number columns are recognized by header.
        width: columns of the terminal.
    """
    widths = natural_widths(rows, headers)
    least = [_least(i, name, widths[i]) for i, name in enumerate(headers)]
    excess = sum(widths) + GAP * (len(widths) - 1) - width
    for column in sorted(range(len(widths)), key=lambda i: _rank(i, headers)):
        if excess > 0:
            taken = min(excess, widths[column] - least[column])
            widths[column] -= taken
            excess -= taken
    prose = [name in _PROSE for name in headers]
    return [
        [_shortened(cell, room, prose=p) for cell, room, p in zip(row, widths, prose, strict=True)]
        for row in rows
    ]


def natural_widths(rows: list[list[str]], headers: list[str]) -> list[int]:
    """Return the width in characters that tabulate gives to each column."""
    cells = [max(map(len, column)) for column in zip(*rows, strict=True)] or [0] * len(headers)
    return [max(len(h) + MIN_PADDING, w) for h, w in zip(headers, cells, strict=True)]


def _least(column: int, header: str, widest: int) -> int:
    if header in _NUMBERS:
        return widest
    floor = _NARROWEST_PROSE if header in _PROSE else _NARROWEST if column else _NARROWEST_KEY
    return min(widest, max(floor, len(header) + MIN_PADDING))


def _rank(column: int, headers: list[str]) -> tuple[int, int]:
    """Return the sort key of shrinking: prose first (it wraps), then keys, then from the right."""
    return (0, -column) if headers[column] in _PROSE else (1, 0) if column == 0 else (2, -column)


def _shortened(cell: str, room: int, *, prose: bool) -> str:
    if len(cell) <= room:
        return cell
    return "\n".join(wrap(cell, room, break_on_hyphens=False)) if prose else cut(cell, room)

"""Rows -> the lines of a table; too wide for a terminal, prose is wrapped, all else is cut."""

from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from textwrap import wrap
from typing import Final

from ckptool.render.text import cut

GAP: Final = 2
"""Columns between two cells."""
_PADDING: Final = 2
"""Columns that stay free beside a header."""
_PROSE: Final = frozenset({"why", "why, and what was seen", "holds", "value", "reason", "fix"})
_NARROWEST_KEY: Final = 16
_NARROWEST_PROSE: Final = 20
_NARROWEST: Final = 4


def fit(rows: list[list[str]], headers: list[str], width: int) -> list[list[str]]:
    """Return `rows` so that no line of the table is wider than `width`, where that can be.

    Args:
        rows: cells of one line each; the first is the key.
        headers: one a column; those that hold prose are known by their header.
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


def lines(
    rows: Sequence[Sequence[str]], headers: Sequence[str], right: Collection[str]
) -> Iterator[str]:
    """Yield the lines of a table; columns with a header in `right` end at one edge."""
    widths = natural_widths(rows, headers)
    ends = [bool(rows) and header in right for header in headers]
    yield _line(headers, widths, ends)
    yield _line(["-" * width for width in widths], widths, ends)
    for row in rows:
        for cells in zip_longest(*(cell.split("\n") for cell in row), fillvalue=""):
            yield _line(cells, widths, ends)


def _line(cells: Sequence[str], widths: Sequence[int], ends: Sequence[bool]) -> str:
    placed = (
        cell.rjust(width) if end else cell.ljust(width)
        for cell, width, end in zip(cells, widths, ends, strict=True)
    )
    return (" " * GAP).join(placed).rstrip()


def natural_widths(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> list[int]:
    """Return the width of each column; a cell may have several lines."""
    widths = [len(header) + _PADDING for header in headers]
    for row in rows:
        for column, cell in enumerate(row):
            if len(cell) > widths[column]:
                widths[column] = max(widths[column], *map(len, cell.split("\n")))
    return widths


def _least(column: int, header: str, widest: int) -> int:
    floor = _NARROWEST_PROSE if header in _PROSE else _NARROWEST if column else _NARROWEST_KEY
    return min(widest, max(floor, len(header) + _PADDING))


def _rank(column: int, headers: list[str]) -> tuple[int, int]:
    """Return what gives way first: prose, which loses nothing, then keys, then the last column."""
    return (0, -column) if headers[column] in _PROSE else (1, 0) if column == 0 else (2, -column)


def _shortened(cell: str, room: int, *, prose: bool) -> str:
    if len(cell) <= room:
        return cell
    return "\n".join(wrap(cell, room, break_on_hyphens=False)) if prose else cut(cell, room)

"""Report -> aligned text for a terminal."""

from collections.abc import Iterator
from itertools import groupby
from textwrap import wrap
from typing import Final, assert_never

from tabulate import tabulate

from ckptool.render import Style
from ckptool.render.blocks import Grid, Lines, Problem, Problems, Tree, Verdict
from ckptool.render.columns import GAP, fit, natural_widths
from ckptool.render.layout import blocks
from ckptool.render.text import printable
from ckptool.report import AnyReport

_COLORS: Final = {
    "error": "31",
    "warning": "33",
    "note": "36",
    "bold": "1",
    "passed": "32",
    "failed": "31",
}
_RIGHT: Final = frozenset({"count", "size"})
_INDENT: Final = 2
_BAR: Final = 10
"""Width in columns of a bar for a share of 1."""
_WIDE_KEY: Final = 30
_MOST_ALIKE: Final = 6
"""Maximum warnings or notes with one fix; the rest is only counted. -v shows all."""
_DRAWN: Final = ("\u2502  ", "   ", "\u251c\u2500 ", "\u2514\u2500 ")
"""Line past a later sibling, gap, fork to a child, corner to the last child."""
_ASCII: Final = ("|  ", "   ", "|- ", "`- ")


def render(report: AnyReport, style: Style) -> str:
    parts: list[str] = []
    for block in blocks(report, style):
        match block:
            case Verdict():
                tone = "failed" if block.failed else "passed"
                lines = _wrapped(printable(block.text), 0, style)
                parts.append("\n".join(_paint(line, tone, style) for line in lines))
            case Lines():
                parts.append("\n".join(_lines(block.lines, style)))
            case Grid():
                parts.append(_grid(block, style))
            case Tree():
                parts.append(_tree(block, style))
            case Problems():
                parts.append("\n".join(_problems(block, style)))
            case _:
                assert_never(block)
    return "\n\n".join(parts)


def _paint(text: str, tone: str, style: Style) -> str:
    return f"\x1b[{_COLORS[tone]}m{text}\x1b[0m" if style.color else text


def _lines(lines: tuple[str, ...], style: Style) -> Iterator[str]:
    """Wrap the lines to the width; continuation lines are indented."""
    for line in lines:
        first, *rest = _wrapped(printable(line), _INDENT, style)
        yield first
        yield from (" " * _INDENT + more for more in rest)


def _grid(grid: Grid, style: Style) -> str:
    rows = [[printable(cell) for cell in row] for row in grid.rows]
    return _table(grid.title, list(grid.headers), rows, grid.more, style)


def _tree(tree: Tree, style: Style) -> str:
    """Draw the tree with bars for each share of the bytes; without bars if they do not fit."""
    flat = all(len(row.more) == 1 for row in tree.rows)
    names = [
        ("" if flat else _branches(row.more, style)) + printable(row.name) for row in tree.rows
    ]
    rows = [
        [name, *map(printable, row.cells), _bar(row.share, style)]
        for name, row in zip(names, tree.rows, strict=True)
    ]
    headers = ["key", *tree.headers, "share"]
    if len(rows) == 1 or (style.width and _narrow(rows, headers, style.width)):
        rows, headers = [row[:-1] for row in rows], headers[:-1]
    return _table(tree.title, headers, rows, tree.more, style)


def _branches(more: tuple[bool, ...], style: Style) -> str:
    down, gap, fork, end = _DRAWN if style.unicode else _ASCII
    above = "".join(down if follows else gap for follows in more[:-1])
    return above + (fork if more[-1] else end)


def _bar(share: float, style: Style) -> str:
    eighths = round(share * _BAR * 8)
    if not style.unicode:
        return "#" * round(share * _BAR)
    return "\u2588" * (eighths // 8) + (chr(0x2590 - eighths % 8) if eighths % 8 else "")


def _narrow(rows: list[list[str]], headers: list[str], width: int) -> bool:
    """Return whether the keys need the room that bars would take."""
    widths = natural_widths(rows, headers)
    return min(widths[0], _WIDE_KEY) + sum(widths[1:]) + GAP * (len(widths) - 1) > width


def _table(title: str, headers: list[str], rows: list[list[str]], more: str, style: Style) -> str:
    if style.width and rows:
        rows = fit(rows, headers, style.width)
    align = ["right" if name in _RIGHT else "left" for name in headers]
    body = tabulate(
        rows,
        headers,
        tablefmt="simple",
        disable_numparse=True,
        preserve_whitespace=True,
        colalign=align if rows else None,
    )
    lines = [
        *(_paint(line, "bold", style) for line in _lines((title,), style)),
        *(line.rstrip() for line in body.splitlines()),
    ]
    return "\n".join([*lines, more] if more else lines)


def _problems(block: Problems, style: Style) -> Iterator[str]:
    yield _paint(printable(f"Findings: {block.summary}"), "bold", style)
    for _, alike in groupby(block.problems, key=lambda p: (p.level, p.code, p.fix)):
        yield from _alike(list(alike), style)


def _alike(problems: list[Problem], style: Style) -> Iterator[str]:
    """Yield findings and their common fix; many warnings or notes are cut to `_MAX_SAME_FIX`."""
    first = problems[0]
    head = f"{first.level:<7} {first.code}  "
    whole = style.verbosity > 0 or first.level == "error" or len(problems) <= _MOST_ALIKE
    shown = problems if whole else problems[: _MOST_ALIKE - 1]
    for problem in shown:
        lines = _wrapped(printable(problem.message), len(head), style)
        yield _paint(head, problem.level, style) + lines[0]
        yield from (" " * len(head) + line for line in lines[1:])
    left = len(problems) - len(shown)
    more = (f"... and {left} more {first.code} (-v shows all)",) if left else ()
    for text in (*more, f"fix: {first.fix}"):
        yield from (" " * len(head) + line for line in _wrapped(printable(text), len(head), style))


def _wrapped(text: str, indent: int, style: Style) -> list[str]:
    if not style.width:
        return [text]
    room = max(style.width - indent, 30)
    return wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]

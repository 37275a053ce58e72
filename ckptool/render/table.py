"""Report -> aligned text for people."""

from collections.abc import Iterator
from textwrap import wrap
from typing import Final, assert_never

from tabulate import MIN_PADDING, tabulate

from ckptool.render import Style
from ckptool.render.blocks import Grid, Lines, Problem, Problems, Verdict
from ckptool.render.layout import blocks
from ckptool.render.text import cut, printable
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
_GAP: Final = 2
_NARROWEST_KEY: Final = 16


def render(report: AnyReport, style: Style) -> str:
    parts: list[str] = []
    for block in blocks(report, style):
        match block:
            case Verdict():
                tone = "failed" if block.failed else "passed"
                parts.append(_paint(printable(block.text), tone, style))
            case Lines():
                parts.append("\n".join(printable(line) for line in block.lines))
            case Grid():
                parts.append(_grid(block, style))
            case Problems():
                parts.append("\n".join(_problems(block, style)))
            case _:
                assert_never(block)
    return "\n\n".join(parts)


def _paint(text: str, tone: str, style: Style) -> str:
    return f"\x1b[{_COLORS[tone]}m{text}\x1b[0m" if style.color else text


def _grid(grid: Grid, style: Style) -> str:
    rows = [[printable(cell) for cell in row] for row in grid.rows]
    if style.width and rows:
        rows = _fit(rows, grid.headers, style.width)
    align = ["right" if name in _RIGHT else "left" for name in grid.headers]
    body = tabulate(
        rows,
        grid.headers,
        tablefmt="simple",
        disable_numparse=True,
        colalign=align if rows else None,
    )
    lines = [
        _paint(printable(grid.title), "bold", style),
        *(line.rstrip() for line in body.splitlines()),
    ]
    return "\n".join([*lines, grid.more] if grid.more else lines)


def _fit(rows: list[list[str]], headers: tuple[str, ...], width: int) -> list[list[str]]:
    """Cut the keys in the middle, so that no row is wider than the terminal."""
    others = sum(
        max(len(headers[i]) + MIN_PADDING, *(len(row[i]) for row in rows)) + _GAP
        for i in range(1, len(headers))
    )
    room = max(width - others, _NARROWEST_KEY)
    return [[cut(row[0], room), *row[1:]] for row in rows]


def _problems(block: Problems, style: Style) -> Iterator[str]:
    yield _paint(f"Findings: {block.summary}", "bold", style)
    for problem in block.problems:
        yield from _problem(problem, style)


def _problem(problem: Problem, style: Style) -> Iterator[str]:
    head = f"{problem.level:<7} {problem.code}  "
    lines = _wrapped(printable(problem.message), len(head), style)
    yield _paint(head, problem.level, style) + lines[0]
    indent = " " * len(head)
    yield from (indent + line for line in lines[1:])
    fix = _wrapped(printable(f"fix: {problem.fix}"), len(head), style)
    yield from (indent + line for line in fix)


def _wrapped(text: str, indent: int, style: Style) -> list[str]:
    if not style.width:
        return [text]
    room = max(style.width - indent, 30)
    return wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]

"""Report -> GitHub-flavoured Markdown for a pull request or a step summary."""

from collections.abc import Iterator
from typing import assert_never

from ckptool.render import Style
from ckptool.render.blocks import Grid, Lines, Problem, Problems, Tree, Verdict
from ckptool.render.layout import blocks
from ckptool.render.text import printable
from ckptool.report import AnyReport


def render(report: AnyReport, style: Style) -> str:
    parts: list[str] = []
    for block in blocks(report, style):
        match block:
            case Verdict():
                parts.append(f"### {_escaped(block.text)}")
            case Lines():
                parts.append("\n".join(f"- {_escaped(line)}" for line in block.lines))
            case Grid():
                parts.append("\n".join(_grid(block)))
            case Tree():
                parts.append("\n".join(_grid(block.flat)))
            case Problems():
                parts.append("\n".join(_problems(block)))
            case _:
                assert_never(block)
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    """Escape Markdown and HTML syntax outside the code spans of `text`."""
    pieces = printable(text).split("`")
    plain = [p if i % 2 else _plain(p) for i, p in enumerate(pieces)]
    return "`".join(plain) if len(pieces) % 2 else _plain(printable(text).replace("`", "'"))


def _plain(text: str) -> str:
    for character in "\\*_<>|[]":
        text = text.replace(character, f"\\{character}")
    return text


def _code(text: str) -> str:
    """Format `text` as a code span for a table cell, "" if it is empty."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`" if text else ""


def _grid(grid: Grid) -> Iterator[str]:
    yield f"**{_escaped(grid.title)}**"
    yield ""
    yield f"| {' | '.join(grid.headers)} |"
    yield f"|{'---|' * len(grid.headers)}"
    for row in grid.rows:
        yield f"| {' | '.join((_code(row[0]), *(_escaped(c) for c in row[1:])))} |"
    if grid.more:
        yield ""
        yield _escaped(grid.more)


def _problems(block: Problems) -> Iterator[str]:
    yield f"**Findings: {_escaped(block.summary)}**"
    yield ""
    yield "| level | rule | finding | fix |"
    yield "|---|---|---|---|"
    yield from (_problem(problem) for problem in block.problems)


def _problem(problem: Problem) -> str:
    cells = (problem.level, problem.code, _cell(problem.message), _cell(problem.fix))
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Escape for a table cell, where a pipe ends the cell even inside a code span."""
    return _escaped(text).replace("\\|", "|").replace("|", "\\|")

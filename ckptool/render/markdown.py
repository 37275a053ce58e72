"""Report -> GitHub-flavoured Markdown for a pull request or a step summary."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, assert_never

from ckptool.phrases import make_printable
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    LinesBlock,
    ProblemCard,
    ProblemsBlock,
    TableBlock,
    TreeBlock,
    VerdictBlock,
)
from ckptool.render.views import build_blocks

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

_LINE_BREAK: Final = "<br>"
"""Line break within a cell of a table."""


def render(report: "AnyReport", options: RenderOptions) -> str:
    parts: list[str] = []
    for block in build_blocks(report, options):
        match block:
            case VerdictBlock():
                parts.append(f"### {_escape_text(block.text)}")
            case LinesBlock(language="diff"):
                parts.append("\n".join(_iter_code_lines(block)))
            case LinesBlock():
                parts.append("\n".join(f"- {_escape_text(line)}" for line in block.lines))
            case TableBlock():
                parts.append("\n".join(_iter_table_lines(block)))
            case TreeBlock():
                parts.append("\n".join(_iter_table_lines(block.leaf_table)))
            case ProblemsBlock():
                parts.append("\n".join(_iter_problems_lines(block)))
            case _:
                assert_never(block)
    return "\n\n".join(parts)


def _iter_code_lines(block: LinesBlock) -> Iterator[str]:
    """Yield a fenced block of code, whose fence is longer than any in it."""
    lines = [make_printable(line) for line in block.lines]
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield f"{fence}{block.language}"
    yield from lines
    yield fence


def _escape_text(text: str) -> str:
    """Escape Markdown and HTML syntax outside the code spans of `text`."""
    pieces = make_printable(text).split("`")
    escaped_pieces = [piece if i % 2 else _escape_plain(piece) for i, piece in enumerate(pieces)]
    return (
        "`".join(escaped_pieces)
        if len(pieces) % 2
        else _escape_plain(make_printable(text).replace("`", "'"))
    )


def _escape_plain(text: str) -> str:
    for character in "\\*_<>|[]":
        text = text.replace(character, f"\\{character}")
    return text


def _format_code_span(text: str) -> str:
    """Format `text` as a code span for a table cell, "" if it is empty."""
    return (
        f"`{make_printable(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
        if text
        else ""
    )


def _iter_table_lines(table: TableBlock) -> Iterator[str]:
    yield f"**{_escape_text(table.title)}**"
    yield ""
    yield f"| {' | '.join(column.header for column in table.columns)} |"
    yield f"|{'---|' * len(table.columns)}"
    for row in table.rows:
        cells = (_format_code_span(row[0]), *(_escape_text(cell) for cell in row[1:]))
        yield f"| {' | '.join(cells)} |"
    if table.more:
        yield ""
        yield _escape_text(table.more)


def _iter_problems_lines(block: ProblemsBlock) -> Iterator[str]:
    path = f"{block.path}: " if block.path else ""
    yield f"**Problems: {_escape_text(path + block.summary)}**"
    yield ""
    yield "| level | rule | problem | fix |"
    yield "|---|---|---|---|"
    yield from map(_format_card_row, block.cards)


def _format_card_row(card: ProblemCard) -> str:
    texts = [_escape_cell(line.message) for line in card.lines]
    texts += [f"{card.escalation}:"] if card.escalation else []
    texts += [f"- {_escape_cell(text)}" for text in card.consequences]
    label = f"{card.fix_label}: " if card.fixed_key else ""
    fixes = [f"{label}{card.fix}"] if card.fix else [line.fix for line in card.lines]
    cells = (
        card.level,
        card.code,
        _LINE_BREAK.join(texts),
        _LINE_BREAK.join(map(_escape_cell, fixes)),
    )
    return f"| {' | '.join(cells)} |"


def _escape_cell(text: str) -> str:
    """Escape for a table cell, where a pipe ends the cell even inside a code span."""
    return _escape_text(text).replace("\\|", "|").replace("|", "\\|")

"""Report -> aligned text for a terminal."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

from tabulate import tabulate

from ckptool.phrases import make_printable
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    Column,
    ColumnKind,
    LinesBlock,
    ProblemCard,
    ProblemsBlock,
    TableBlock,
    TreeBlock,
    VerdictBlock,
)
from ckptool.render.column_widths import (
    COLUMN_GAP,
    fit_columns,
    measure_column_widths,
    measure_padded_width,
)
from ckptool.render.text import COMMAND, split_commands
from ckptool.render.views import build_blocks

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

_COLORS: Final = {
    "error": "31",
    "warning": "33",
    "note": "36",
    "bold": "1",
    "passed": "32",
    "failed": "31",
}
_UNBROKEN_SPACE: Final = "\x1f"
"""Stands for a space within a command; printable text has no control characters."""
_CUT: Final = "\ue000"
"""Stands for the end of a cell while the table is padded; no printable text has it."""
_LongCell: TypeAlias = tuple[int, str]
"""(row, what was cut off)."""
_HEADER_LINES: Final = 2
"""Lines of a table before its first row."""
_INDENT: Final = 2
_BAR_WIDTH: Final = 10
"""Width in columns of a bar for a share of 1."""
_RESERVED_KEY_WIDTH: Final = 30
_MAX_SAME_FIX: Final = 6
"""Maximum warnings or notes with one fix; the rest is only counted. -v shows all."""
_UNICODE_BRANCHES: Final = ("\u2502  ", "   ", "\u251c\u2500 ", "\u2514\u2500 ")
"""Line past a later sibling, gap, fork to a child, corner to the last child."""
_ASCII_BRANCHES: Final = ("|  ", "   ", "|- ", "`- ")


def render(report: "AnyReport", options: RenderOptions) -> str:
    parts: list[str] = []
    for block in build_blocks(report, options):
        match block:
            case VerdictBlock():
                tone = "failed" if block.has_failed else "passed"
                lines = wrap_text(make_printable(block.text), 0, options)
                parts.append("\n".join(_color_text(line, tone, options) for line in lines))
            case LinesBlock(language="diff"):
                parts.append("\n".join(map(make_printable, block.lines)))
            case LinesBlock():
                parts.append("\n".join(_wrap_lines(block.lines, options)))
            case TableBlock():
                parts.append(_render_table(block, options))
            case TreeBlock():
                parts.append(_render_tree(block, options))
            case ProblemsBlock():
                parts.append("\n".join(_iter_problems_lines(block, options)))
            case _:
                assert_never(block)
    return "\n\n".join(parts)


def _color_text(text: str, tone: str, options: RenderOptions) -> str:
    return f"\x1b[{_COLORS[tone]}m{text}\x1b[0m" if options.color else text


def _wrap_lines(lines: tuple[str, ...], options: RenderOptions) -> Iterator[str]:
    """Wrap the lines to the width; continuation lines are indented."""
    for line in lines:
        first, *continuation = wrap_text(make_printable(line), _INDENT, options)
        yield first
        yield from (" " * _INDENT + continuation_line for continuation_line in continuation)


def _render_table(table: TableBlock, options: RenderOptions) -> str:
    rows = [[make_printable(cell) for cell in row] for row in table.rows]
    return _format_table(table.title, table.columns, rows, table.more, options)


def _render_tree(tree: TreeBlock, options: RenderOptions) -> str:
    """Draw the tree with bars for each share of the bytes; without bars if they do not fit."""
    is_flat = all(len(row.sibling_follows) == 1 for row in tree.rows)
    names = [
        ("" if is_flat else _format_branches(row.sibling_follows, options))
        + make_printable(row.name)
        for row in tree.rows
    ]
    rows = [
        [name, *map(make_printable, row.cells), _format_bar(row.share, options)]
        for name, row in zip(names, tree.rows, strict=True)
    ]
    columns = (Column("key"), *tree.columns, Column("share"))
    if len(rows) == 1 or (options.width and _is_too_narrow(rows, columns, options.width)):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    return _format_table(tree.title, columns, rows, tree.more, options)


def _format_branches(sibling_follows: tuple[bool, ...], options: RenderOptions) -> str:
    down, gap, fork, end = _UNICODE_BRANCHES if options.unicode else _ASCII_BRANCHES
    prefix = "".join(down if follows else gap for follows in sibling_follows[:-1])
    return prefix + (fork if sibling_follows[-1] else end)


def _format_bar(share: float, options: RenderOptions) -> str:
    eighths = round(share * _BAR_WIDTH * 8)
    if not options.unicode:
        return "#" * round(share * _BAR_WIDTH)
    return "\u2588" * (eighths // 8) + (chr(0x2590 - eighths % 8) if eighths % 8 else "")


def _is_too_narrow(rows: list[list[str]], columns: Sequence[Column], width: int) -> bool:
    """Return whether the keys need the room that bars would take."""
    widths = measure_column_widths(rows, columns)
    return (
        min(widths[0], _RESERVED_KEY_WIDTH) + sum(widths[1:]) + COLUMN_GAP * (len(widths) - 1)
        > width
    )


def _format_table(
    title: str,
    columns: Sequence[Column],
    rows: list[list[str]],
    more: str,
    options: RenderOptions,
) -> str:
    long_cells: list[_LongCell] = []
    if options.width and rows:
        rows = fit_columns(rows, columns, options.width)
    elif rows:
        rows, long_cells = _cut_long_cells(rows, columns)
    align = ["right" if c.kind is ColumnKind.NUMBER else "left" for c in columns]
    body = tabulate(
        rows,
        [column.header for column in columns],
        tablefmt="simple",
        disable_numparse=True,
        preserve_whitespace=True,
        colalign=align if rows else None,
    )
    body_lines = body.split("\n")
    for row, cell_end in long_cells:
        body_lines[row + _HEADER_LINES] = body_lines[row + _HEADER_LINES].replace(_CUT, cell_end, 1)
    lines = [
        *(_color_text(line, "bold", options) for line in _wrap_lines((title,), options)),
        *(line.rstrip() for line in body_lines),
    ]
    return "\n".join([*lines, more] if more else lines)


def _cut_long_cells(
    rows: list[list[str]], columns: Sequence[Column]
) -> tuple[list[list[str]], list[_LongCell]]:
    """Cut cells that are longer than their column is padded to; return what was cut off as well.

    `_CUT` stands for it in the cell. The last column has no padding.
    """
    cut_rows = [[*row] for row in rows]
    long_cells: list[_LongCell] = []
    limits = [
        None if column.kind is ColumnKind.NUMBER else measure_padded_width(cells)
        for column, cells in zip(columns[:-1], zip(*rows, strict=True), strict=False)
    ]
    for index, row in enumerate(cut_rows):
        for column, limit in enumerate(limits):
            if limit is not None and len(row[column]) > limit:
                long_cells.append((index, row[column][limit - 1 :]))
                row[column] = row[column][: limit - 1] + _CUT
    return cut_rows, long_cells


def _iter_problems_lines(block: ProblemsBlock, options: RenderOptions) -> Iterator[str]:
    path = f"{block.path}: " if block.path else ""
    title = make_printable(f"Problems: {path}{block.summary}")
    yield from (_color_text(line, "bold", options) for line in _wrap_lines((title,), options))
    for _, same_fix_cards in groupby(
        block.cards, key=lambda card: (card.level, card.code, card.fix or card)
    ):
        yield from _iter_same_fix_lines(list(same_fix_cards), options)


def _iter_same_fix_lines(cards: list[ProblemCard], options: RenderOptions) -> Iterator[str]:
    """Yield problems and their common fix; many warnings or notes are cut to `_MAX_SAME_FIX`."""
    first = cards[0]
    label = f"{first.level:<7} {first.code}  "
    show_all = options.verbosity > 0 or first.level == "error" or len(cards) <= _MAX_SAME_FIX
    shown_cards = cards if show_all else cards[: _MAX_SAME_FIX - 1]
    margin = " " * len(label)
    for card in shown_cards:
        for index, line in enumerate(card.lines):
            head, *continuation = wrap_text(make_printable(line.message), len(label), options)
            yield (margin if index else _color_text(label, card.level, options)) + head
            yield from (margin + text for text in continuation)
            if line.fix:
                yield from _iter_fix_lines(f"fix: {line.fix}", len(label), options)
        if card.escalation:
            yield from _iter_indented(f"{card.escalation}:", len(label), options)
        for text in card.consequences:
            yield from _iter_bullet_lines(text, len(label), options)
    omitted_count = len(cards) - len(shown_cards)
    if omitted_count:
        yield from _iter_indented(
            f"... and {omitted_count} more {first.code} (-v shows all)", len(label), options
        )
    if first.fix:
        yield from _iter_fix_lines(f"{first.fix_label}: {first.fix}", len(label), options)


def _iter_indented(text: str, indent: int, options: RenderOptions) -> Iterator[str]:
    for line in wrap_text(make_printable(text), indent, options):
        yield " " * indent + line


def _iter_fix_lines(text: str, indent: int, options: RenderOptions) -> Iterator[str]:
    """Wrap a fix; nothing follows a command on its line, so that the line can be pasted."""
    paragraphs = [""]
    follows_command = False
    for is_command, piece in split_commands(text) if options.width else [(False, text)]:
        if follows_command:
            paragraphs.append("")
            piece = piece.lstrip(" ,.;:")  # noqa: PLW2901 - the punctuation of the command
        paragraphs[-1] += piece
        follows_command = is_command
    for paragraph in filter(None, paragraphs):
        yield from _iter_indented(paragraph, indent, options)


def _iter_bullet_lines(text: str, indent: int, options: RenderOptions) -> Iterator[str]:
    head, *continuation = wrap_text(make_printable(text), indent + _INDENT, options)
    yield f"{' ' * indent}- {head}"
    yield from (" " * (indent + _INDENT) + line for line in continuation)


def wrap_text(text: str, indent: int, options: RenderOptions) -> list[str]:
    """Wrap printable text to the width; a command stays on one line, so that it can be pasted."""
    if not options.width:
        return [text]
    width = max(options.width - indent, 30)
    text = COMMAND.sub(lambda match: match[0].replace(" ", _UNBROKEN_SPACE), text)
    lines = wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    return [line.replace(_UNBROKEN_SPACE, " ") for line in lines]

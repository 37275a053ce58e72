"""What a narrow terminal may do to a report: names are cut in the middle, words never are."""

from collections import Counter
from typing import Any

from ckptool.render import RenderOptions, render
from ckptool.render.blocks import Block, Column, ColumnKind, TableBlock, TreeBlock, VerdictBlock
from ckptool.render.views import build_blocks

WIDTHS = (80, 60, 40)
NAMES = {
    "after", "before", "by", "checkpoint", "compared with", "digest", "fact", "file", "from", "is",
    "key", "key path", "lock", "module", "name", "now", "place", "setting", "source", "target",
    "value from", "weight",
}  # fmt: skip
"""Headers of columns whose cells are names of the user's: keys, paths, classes."""


def assert_no_word_is_cut(report: Any) -> None:
    """Check the text of a report, at each width, against its blocks, which have no width."""
    blocks = [*build_blocks(report, RenderOptions())]
    for width in WIDTHS:
        text = render("table", report, RenderOptions(width=width))
        shown = Counter(text.split())
        wanted = Counter[str]()
        for block in blocks:
            wanted += Counter(collect_words(block))
        cut = {word: count for word, count in (wanted - shown).items() if word not in {"", "-"}}
        assert not cut, f"{cut} at {width} columns:\n{text}"


def collect_words(block: Block) -> list[str]:
    """Return the words of a block that are not names: verdict, headers, cells of fixed words."""
    match block:
        case VerdictBlock():
            return block.text.split()
        case TableBlock() if block.rows:
            columns: tuple[Column, ...] = block.columns
            rows = block.rows
        case TreeBlock() if block.rows:
            columns, rows = block.columns, tuple(row.cells for row in block.rows)
        case _:
            return []
    words = [word for column in columns for word in column.header.split()]
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        if column.kind is ColumnKind.TEXT:
            assert column.header in NAMES, f"{column.header}: cells of names, or of words?"
        elif column.kind is not ColumnKind.PROSE:
            words += [word for cell in cells for word in cell.split()]
    return words

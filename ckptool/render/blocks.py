"""Blocks: the format-independent content of a report (verdict, lines, tables, findings)."""

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.folding import FoldedItems, fold_by_pattern, fold_by_subtree
from ckptool.model import natural_sort_key
from ckptool.phrases import MAX_LINE_CHARS, cut_middle
from ckptool.render import RenderOptions
from ckptool.reports.common import SilencedReport, SkippedReport

T = TypeVar("T")

MAX_TABLE_ROWS: Final = 60
"""Maximum rows of one table; the rest is only counted. -v shows all."""
MAX_KEY_ROWS: Final = 16
"""Maximum rows of a table that only lists keys; more are counted by sub-tree. -v shows all."""


class VerdictBlock(Struct, frozen=True):
    """The verdict: the first line of a report."""

    text: str
    has_failed: bool


class LinesBlock(Struct, frozen=True):
    """Plain lines of text, or of code."""

    lines: tuple[str, ...]
    language: str = ""
    """"diff" for lines of a diff, which are neither wrapped nor escaped; "" for text."""


class ColumnKind(Enum):
    """How a renderer may treat the cells of a column."""

    TEXT = "text"
    """Truncated in the middle where there is no room: keys, paths, names."""
    WORDS = "words"
    """Wrapped between words, none of which is cut: kinds, statuses, dtypes, shapes."""
    PROSE = "prose"
    """Wrapped; a word that is longer than the column is cut in two."""
    EXACT = "exact"
    """Never truncated: part of a figure or of a code is meaningless or wrong."""
    NUMBER = "number"
    """Never truncated, and aligned to the right."""


class Column(Struct, frozen=True):
    """The header of a column, and how its cells may be shown."""

    header: str
    kind: ColumnKind = ColumnKind.TEXT
    usual_value: str | None = None
    """The column is omitted if every row has this value; None: never omitted."""


COUNT: Final = Column("count", ColumnKind.NUMBER, "1")
SIZE: Final = Column("size", ColumnKind.NUMBER)
DTYPE: Final = Column("dtype", ColumnKind.WORDS)
SHAPE: Final = Column("shape", ColumnKind.WORDS)
DEVICE: Final = Column("device", ColumnKind.WORDS, "cpu")
KIND: Final = Column("kind", ColumnKind.WORDS, "")
WHAT: Final = Column("what", ColumnKind.WORDS, "")
LEVEL: Final = Column("level", ColumnKind.WORDS)
STATUS: Final = Column("status", ColumnKind.WORDS)
VERDICT: Final = Column("verdict", ColumnKind.PROSE)
RAN_ON: Final = Column("ran on", ColumnKind.WORDS)
VALUE: Final = Column("value", ColumnKind.PROSE)
WHY: Final = Column("why", ColumnKind.PROSE)


class TableBlock(Struct, frozen=True):
    """A table; the first column is a key and may be truncated."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    more: str = ""
    """Note on omitted rows, "" if none were omitted."""


class TreeRow(Struct, frozen=True):
    """A row of a `TreeBlock`: a module or a tensor."""

    name: str
    sibling_follows: tuple[bool, ...]
    """Whether a sibling follows, for each ancestor below the root and for the row itself."""
    key: str
    """The full key; "" for a module."""
    cells: tuple[str, ...]
    share: float
    """Fraction of the tree's bytes, 0 to 1."""


class TreeBlock(Struct, frozen=True):
    """A table whose first column is a tree; formats without trees show `leaf_table`."""

    title: str
    columns: tuple[Column, ...]
    """Columns of the cells; the tree's column precedes them, the share follows."""
    rows: tuple[TreeRow, ...]
    more: str = ""

    @property
    def leaf_table(self) -> TableBlock:
        """The leaves as a table, each under its full key."""
        rows = tuple((row.key, *row.cells) for row in self.rows if row.key)
        return TableBlock(self.title, (Column("key"), *self.columns), rows, self.more)


class ProblemLine(Struct, frozen=True):
    """What is wrong, of one key or of several that differ in layer numbers only."""

    message: str
    fix: str = ""
    """"" if the fix of the card is for all its lines."""


class ProblemCard(Struct, frozen=True):
    """One cause, the findings that follow from it, and one fix."""

    level: str
    """The worst level of its findings."""
    code: str
    name: str
    lines: tuple[ProblemLine, ...]
    consequences: tuple[str, ...]
    fix: str
    """"" if each line has its own."""
    escalation: str = ""
    """Why its level is worse than that of its own rule; "" if it is not."""
    fixed_key: str = ""
    """Key that `fix` is for, where other lines need another one; "" if it is for all of them."""

    @property
    def fix_label(self) -> str:
        """What stands before the fix: "fix", or "fix of `KEY` (-v shows all)"."""
        return f"fix of `{self.fixed_key}` (-v shows all)" if self.fixed_key else "fix"


class ProblemsBlock(Struct, frozen=True):
    """Problems and the count of each level ("1 error, 2 notes")."""

    path: str
    """The checkpoints concerned, "" if the report is about one."""
    summary: str
    cards: tuple[ProblemCard, ...]


Block = VerdictBlock | LinesBlock | TableBlock | TreeBlock | ProblemsBlock


def cut_long_texts(block: Block) -> Block:
    """Return the block with its long texts cut in the middle, and said to be.

    All cells of a column are as wide as its longest one: one long key would make every row long.
    """
    match block:
        case VerdictBlock():
            return replace(block, text=cut_middle(block.text, MAX_LINE_CHARS))
        case LinesBlock():
            lines = tuple(cut_middle(line, MAX_LINE_CHARS) for line in block.lines)
            return replace(block, lines=lines)
        case TableBlock():
            rows = tuple(
                tuple(
                    cut_middle(cell, MAX_LINE_CHARS)
                    if column.kind is ColumnKind.PROSE
                    else cut_middle(cell)
                    for cell, column in zip(row, block.columns, strict=True)
                )
                for row in block.rows
            )
            title = cut_middle(block.title, MAX_LINE_CHARS)
            return replace(block, title=title, rows=rows)
        case TreeBlock():
            tree_rows = tuple(
                replace(row, name=cut_middle(row.name), key=cut_middle(row.key))
                for row in block.rows
            )
            title = cut_middle(block.title, MAX_LINE_CHARS)
            return replace(block, title=title, rows=tree_rows)
        case ProblemsBlock():
            return replace(block, cards=tuple(map(_cut_card, block.cards)))


def _cut_card(card: ProblemCard) -> ProblemCard:
    return replace(
        card,
        lines=tuple(
            ProblemLine(cut_middle(line.message, MAX_LINE_CHARS), _cut_fix(line.fix))
            for line in card.lines
        ),
        consequences=tuple(cut_middle(text, MAX_LINE_CHARS) for text in card.consequences),
        fix=_cut_fix(card.fix),
    )


def _cut_fix(fix: str) -> str:
    return cut_middle(fix, MAX_LINE_CHARS)


def build_skipped_lines(
    skipped: Iterable[SkippedReport], options: RenderOptions
) -> Iterator[LinesBlock]:
    """Yield a line for each skipped check; those that differ in layer numbers only are counted."""
    paths_by_check: dict[tuple[str, str], list[str]] = {}
    for entry in dict.fromkeys(skipped):
        paths_by_check.setdefault((entry.what, entry.reason), []).append(entry.path)
    lines = tuple(
        f"not checked: {group.key}{format_times(group.items)}: {reason}"
        f"{_format_affected_paths(paths)}"
        for group in fold_unless_verbose(
            (
                (what, (reason, _format_affected_paths(paths)), (reason, paths))
                for (what, reason), paths in paths_by_check.items()
            ),
            options,
        )
        for reason, paths in [group.items[0]]
    )
    yield from _build_limited_lines(lines, options)


def _build_limited_lines(lines: tuple[str, ...], options: RenderOptions) -> Iterator[LinesBlock]:
    if lines:
        shown_lines, more = _limit_rows(lines, options, "line")
        yield LinesBlock((*shown_lines, more) if more else lines)


def format_times(items: Sequence[object]) -> str:
    return f" (x{len(items):,})" if len(items) > 1 else ""


def _format_affected_paths(paths: list[str]) -> str:
    """Return " (PATH and N more)", or "" if the entry names no checkpoint."""
    if not paths[0]:
        return ""
    return f" ({paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''})"


def build_silenced_lines(
    silenced: Iterable[SilencedReport], options: RenderOptions
) -> Iterator[LinesBlock]:
    """Yield a line for each silenced finding, as `build_skipped_lines` does."""
    groups = fold_unless_verbose(
        ((s.finding.key, (s.finding.code, s.finding.path, s.by, s.reason), s) for s in silenced),
        options,
    )
    lines = tuple(
        _format_silenced(group.items[0], group.key, format_times(group.items)) for group in groups
    )
    yield from _build_limited_lines(lines, options)


def _format_silenced(silenced: SilencedReport, key: str, times: str) -> str:
    finding = silenced.finding
    label = "waived" if silenced.by == "waiver" else "known"
    key_text = f" of `{key}`" if key else ""
    path_text = f" in {finding.path}" if finding.path else ""
    return f"{label}: {finding.code} {finding.name}{key_text}{times}{path_text}: {silenced.reason}"


def fold_unless_verbose(
    items: Iterable[tuple[str, object, T]], options: RenderOptions
) -> list[FoldedItems[T]]:
    """Group (key, attributes, item) by layer pattern; with -v, one group for each item."""
    if options.verbosity < 1:
        return fold_by_pattern(items)
    return [FoldedItems(key, key, (item,)) for key, _, item in items]


def fold_keys(
    items: Iterable[tuple[str, object, T]], options: RenderOptions
) -> list[FoldedItems[T]]:
    """Group (key, attributes, item) by layer pattern, and by sub-tree where rows stay many.

    The attributes of the items of a sub-tree may differ.
    """
    groups = fold_unless_verbose(items, options)
    if options.verbosity > 0:
        return groups
    return [group for group, _ in fold_by_subtree(groups, MAX_KEY_ROWS)]


def build_keys_table(title: str, keys: Iterable[str], options: RenderOptions) -> TableBlock:
    """Build a table that only lists keys, in natural order, and counts those that repeat."""
    ordered_keys = sorted(keys, key=natural_sort_key)
    rows = [
        (group.key, f"{len(group.items):,}")
        for group in fold_keys(((key, "", key) for key in ordered_keys), options)
    ]
    return build_table(title, ("key", COUNT), rows, options)


def build_table(
    title: str,
    columns: Sequence[Column | str],
    rows: Sequence[tuple[str, ...]],
    options: RenderOptions,
) -> TableBlock:
    """Build the table, without uninformative columns and rows beyond `MAX_TABLE_ROWS`.

    A string among `columns` is the header of a text column.
    """
    table_columns = [Column(c) if isinstance(c, str) else c for c in columns]
    informative = _select_informative_columns(table_columns, rows)
    shown_rows, more = _limit_rows(rows, options)
    return TableBlock(
        title,
        tuple(table_columns[i] for i in informative),
        tuple(tuple(row[i] for i in informative) for row in shown_rows),
        more,
    )


def build_tree(
    title: str, columns: Sequence[Column], rows: Sequence[TreeRow], options: RenderOptions
) -> TreeBlock:
    """Build the tree, without uninformative columns and rows beyond `MAX_TABLE_ROWS`."""
    informative = _select_informative_columns(columns, [row.cells for row in rows if row.key])
    shown_rows, more = _limit_rows(rows, options)
    return TreeBlock(
        title,
        tuple(columns[i] for i in informative),
        tuple(replace(row, cells=tuple(row.cells[i] for i in informative)) for row in shown_rows),
        more,
    )


def _select_informative_columns(
    columns: Sequence[Column], rows: Sequence[tuple[str, ...]]
) -> list[int]:
    return [
        i
        for i, column in enumerate(columns)
        if column.usual_value is None or any(row[i] != column.usual_value for row in rows)
    ]


def _limit_rows(
    rows: Sequence[T], options: RenderOptions, noun: str = "row"
) -> tuple[Sequence[T], str]:
    shown_rows = rows if options.verbosity > 0 else rows[:MAX_TABLE_ROWS]
    omitted_count = len(rows) - len(shown_rows)
    return (
        shown_rows,
        f"... and {omitted_count:,} more {noun}s (-v shows all)" if omitted_count else "",
    )

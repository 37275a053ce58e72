"""Blocks: the format-independent content of a report (verdict, lines, tables, findings)."""

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import natural_sort_key
from ckptool.phrases import pluralize
from ckptool.render import RenderOptions
from ckptool.render.text import FoldedItems, fold_by_pattern, replace_layer_numbers
from ckptool.reports.common import FindingReport, SilencedReport, SkippedReport

T = TypeVar("T")

MAX_TABLE_ROWS: Final = 60
"""Maximum rows of one table; the rest is only counted. -v shows all."""


class VerdictBlock(Struct, frozen=True):
    """The verdict: the first line of a report."""

    text: str
    has_failed: bool


class LinesBlock(Struct, frozen=True):
    """Plain lines of text."""

    lines: tuple[str, ...]


class ColumnKind(Enum):
    """How a renderer may treat the cells of a column."""

    TEXT = "text"
    """Truncated in the middle where there is no room: keys, shapes, dtypes."""
    PROSE = "prose"
    """Wrapped."""
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
DEVICE: Final = Column("device", usual_value="cpu")
KIND: Final = Column("kind", usual_value="")
WHAT: Final = Column("what", usual_value="")
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


class FoldedFinding(Struct, frozen=True):
    """One finding, or several that differ in layer numbers only."""

    level: str
    code: str
    message: str
    fix: str


class FindingsBlock(Struct, frozen=True):
    """Findings and the count of each level ("1 error, 2 notes")."""

    summary: str
    findings: tuple[FoldedFinding, ...]


Block = VerdictBlock | LinesBlock | TableBlock | TreeBlock | FindingsBlock


def group_by_path(
    findings: tuple[FindingReport, ...], *, multiple_checkpoints: bool
) -> dict[str, tuple[FindingReport, ...]]:
    """Group findings by checkpoint path; one group under "" if there is a single checkpoint."""
    paths = sorted({f.path for f in findings}, key=natural_sort_key)
    if not multiple_checkpoints and len(paths) < 2:
        return {"": findings}
    return {path: tuple(f for f in findings if f.path == path) for path in paths}


def build_findings_blocks(
    findings: tuple[FindingReport, ...], options: RenderOptions, path: str = ""
) -> Iterator[FindingsBlock]:
    """Yield the findings of one checkpoint as a block; nothing if there are none."""
    if not findings:
        return
    levels = {
        level: sum(f.level == level for f in findings) for level in ("error", "warning", "note")
    }
    summary = ", ".join(pluralize(n, level) for level, n in levels.items() if n)
    finding_groups = fold_unless_verbose(
        ((f.key, (f.code, f.level, *_get_sides(f)), f) for f in findings), options
    )
    prefix = f"{path}: " if path else ""
    yield FindingsBlock(
        prefix + summary,
        tuple(_build_folded_finding(group.key, group.items) for group in finding_groups),
    )


def _get_sides(finding: FindingReport) -> tuple[object, object]:
    """Return what the finding says that file and module have, which folded findings share."""
    return finding.facts.get("have"), finding.facts.get("want")


def _build_folded_finding(key: str, findings: tuple[FindingReport, ...]) -> FoldedFinding:
    first = findings[0]
    times = f" (x{len(findings)})" if len(findings) > 1 else ""
    message, fix = first.message, first.fix
    if first.key != key and first.key:
        fact_keys = first.facts.get("keys")
        for finding_key in (first.key, *(fact_keys if isinstance(fact_keys, list) else ())):
            message = message.replace(f"`{finding_key}`", f"`{replace_layer_numbers(finding_key)}`")
        message = message.replace(first.key, key)
        # A plan takes no patterns: the fix of the first finding serves as the example.
        fix = f"{fix} (-v shows all)" if "plan" in first.facts else fix.replace(first.key, key)
    return FoldedFinding(first.level, first.code, f"{message}{times}", fix)


def build_skipped_lines(skipped: Iterable[SkippedReport]) -> Iterator[LinesBlock]:
    paths_by_reason: dict[tuple[str, str], list[str]] = {}
    for entry in dict.fromkeys(skipped):
        paths_by_reason.setdefault((entry.what, entry.reason), []).append(entry.path)
    lines = tuple(
        f"not checked: {what}: {reason}{_format_affected_paths(checkpoint_paths)}"
        for (what, reason), checkpoint_paths in paths_by_reason.items()
    )
    if lines:
        yield LinesBlock(lines)


def _format_affected_paths(paths: list[str]) -> str:
    """Return " (PATH and N more)", or "" if the entry names no checkpoint."""
    if not paths[0]:
        return ""
    return f" ({paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''})"


def build_silenced_lines(silenced: Iterable[SilencedReport]) -> Iterator[LinesBlock]:
    lines = tuple(
        f"{'waived' if s.by == 'waiver' else 'known'}: {s.finding.code} {s.finding.name}"
        f"{f' of `{s.finding.key}`' if s.finding.key else ''}"
        f"{f' in {s.finding.path}' if s.finding.path else ''}: {s.reason}"
        for s in silenced
    )
    if lines:
        yield LinesBlock(lines)


def fold_unless_verbose(
    items: Iterable[tuple[str, object, T]], options: RenderOptions
) -> list[FoldedItems[T]]:
    """Group (key, attributes, item) by layer pattern; with -v, one group for each item."""
    if options.verbosity < 1:
        return fold_by_pattern(items)
    return [FoldedItems(key, (item,)) for key, _, item in items]


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


def _limit_rows(rows: Sequence[T], options: RenderOptions) -> tuple[Sequence[T], str]:
    shown_rows = rows if options.verbosity > 0 else rows[:MAX_TABLE_ROWS]
    omitted_count = len(rows) - len(shown_rows)
    return (
        shown_rows,
        f"... and {omitted_count:,} more rows (-v shows all)" if omitted_count else "",
    )

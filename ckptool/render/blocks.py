"""Blocks: the format-independent content of a report (verdict, lines, tables, findings)."""

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import natural_sort_key
from ckptool.phrases import MAX_LINE_CHARS, cut_middle, pluralize
from ckptool.render import RenderOptions
from ckptool.render.folding import (
    FoldedItems,
    fold_by_pattern,
    fold_by_subtree,
    replace_layer_numbers,
)
from ckptool.reports.common import FindingReport, SilencedReport, SkippedReport

T = TypeVar("T")

MAX_TABLE_ROWS: Final = 60
"""Maximum rows of one table; the rest is only counted. -v shows all."""
MAX_RULE_LINES: Final = 6
"""Maximum findings of one rule; more are counted by sub-tree. -v shows all."""
MAX_LISTED_FINDINGS: Final = 20
"""Maximum lines of one rule whose findings are in no common sub-tree. -v shows all."""
MAX_KEY_ROWS: Final = 16
"""Maximum rows of a table that only lists keys; more are counted by sub-tree. -v shows all."""
_CODE_SPAN: Final = re.compile("`[^`]+`")


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
    omitted_count: int = 0
    """Number of findings that are only counted, in `message`; 0: it is one that is shown."""


class FindingsBlock(Struct, frozen=True):
    """Findings and the count of each level ("1 error, 2 notes")."""

    summary: str
    findings: tuple[FoldedFinding, ...]


Block = VerdictBlock | LinesBlock | TableBlock | TreeBlock | FindingsBlock


def cut_long_texts(block: Block) -> Block:
    """Return the block with its long texts cut in the middle, and said to be.

    All cells of a column are as wide as its longest one: one long key would make every row long.
    """
    match block:
        case VerdictBlock():
            return replace(block, text=cut_middle(block.text, MAX_LINE_CHARS))
        case LinesBlock():
            return LinesBlock(tuple(cut_middle(line, MAX_LINE_CHARS) for line in block.lines))
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
        case FindingsBlock():
            findings = tuple(
                replace(
                    finding,
                    message=cut_middle(finding.message, MAX_LINE_CHARS),
                    fix=cut_middle(finding.fix, MAX_LINE_CHARS),
                )
                for finding in block.findings
            )
            return replace(block, findings=findings)


def group_by_path(
    findings: tuple[FindingReport, ...], *, multiple_checkpoints: bool
) -> dict[str, tuple[FindingReport, ...]]:
    """Group findings by checkpoint path; one group under "" if there is a single checkpoint."""
    paths = sorted({f.path for f in findings}, key=natural_sort_key)
    if not multiple_checkpoints and len(paths) < 2:
        return {"": findings}
    groups: dict[str, list[FindingReport]] = {path: [] for path in paths}
    for finding in findings:
        groups[finding.path].append(finding)
    return {path: tuple(group) for path, group in groups.items()}


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
    prefix = f"{path}: " if path else ""
    yield FindingsBlock(prefix + summary, tuple(_iter_folded_findings(findings, options)))


def _iter_folded_findings(
    findings: Sequence[FindingReport], options: RenderOptions
) -> Iterator[FoldedFinding]:
    """Yield one finding, or several that say the same of their keys, in report order.

    Where one rule has many to say, its findings are counted by sub-tree.
    """
    if options.verbosity > 0:
        yield from (FoldedFinding(f.level, f.code, f.message, f.fix) for f in findings)
        return
    findings_by_rule: dict[tuple[str, str], list[FindingReport]] = {}
    for finding in findings:
        findings_by_rule.setdefault((finding.level, finding.code), []).append(finding)
    for rule_findings in findings_by_rule.values():
        groups = fold_by_pattern(
            (f.key, (_generalize(f.message, f), _generalize(f.fix, f)), f) for f in rule_findings
        )
        folded_groups = fold_by_subtree(groups, MAX_RULE_LINES)
        if any(is_subtree for _, is_subtree in folded_groups):
            folded_groups.sort(key=lambda entry: natural_sort_key(entry[0].key))
        for group, is_subtree in folded_groups[:MAX_LISTED_FINDINGS]:
            if is_subtree:
                yield _build_subtree_finding(group, rule_findings[0])
            else:
                yield _build_folded_finding(group.items)
        omitted_count = sum(len(group.items) for group, _ in folded_groups[MAX_LISTED_FINDINGS:])
        if omitted_count:
            level, code = rule_findings[0].level, rule_findings[0].code
            message = f"... and {omitted_count:,} more (-v shows all)"
            yield FoldedFinding(level, code, message, "", omitted_count)


def _generalize(text: str, finding: FindingReport) -> str:
    """Return `text` with the layer numbers of all keys in it replaced by "*"."""
    if "." in finding.key:
        text = text.replace(finding.key, replace_layer_numbers(finding.key))
    return _CODE_SPAN.sub(lambda span: replace_layer_numbers(span[0]), text)


def _build_folded_finding(findings: tuple[FindingReport, ...]) -> FoldedFinding:
    first = findings[0]
    if len(findings) == 1:
        return FoldedFinding(first.level, first.code, first.message, first.fix)
    message = f"{_generalize(first.message, first)}{_format_times(findings)}"
    return FoldedFinding(first.level, first.code, message, _format_shared_fix(findings, first))


def _build_subtree_finding(
    subtree: FoldedItems[FindingReport], example: FindingReport
) -> FoldedFinding:
    """Return the count of one rule's findings in a sub-tree, in words that hold for each."""
    message = f"{example.name.replace('-', ' ')}: `{subtree.key}` (x{len(subtree.items):,})"
    fix = _format_shared_fix(subtree.items, example)
    return FoldedFinding(example.level, example.code, message, fix)


def _format_shared_fix(findings: Sequence[FindingReport], example: FindingReport) -> str:
    """Return the fix of all findings, or that of `example`, named as one.

    A fix that names its key is code or a command to be pasted: a key with "*" is none.
    """
    if all(finding.fix == example.fix for finding in findings):
        return example.fix
    return f"of `{example.key}`, for example: {example.fix} (-v shows all)"


def build_skipped_lines(
    skipped: Iterable[SkippedReport], options: RenderOptions
) -> Iterator[LinesBlock]:
    """Yield a line for each skipped check; those that differ in layer numbers only are counted."""
    paths_by_check: dict[tuple[str, str], list[str]] = {}
    for entry in dict.fromkeys(skipped):
        paths_by_check.setdefault((entry.what, entry.reason), []).append(entry.path)
    lines = tuple(
        f"not checked: {group.key}{_format_times(group.items)}: {reason}"
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


def _format_times(items: Sequence[object]) -> str:
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
        _format_silenced(group.items[0], group.key, _format_times(group.items)) for group in groups
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

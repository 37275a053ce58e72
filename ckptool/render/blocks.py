"""Blocks: the format-independent content of a report (verdict, lines, tables, findings)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import natural
from ckptool.render import Style
from ckptool.render.text import Folded, count, fold, pattern
from ckptool.report import FindingReport, SilencedReport, SkippedReport

T = TypeVar("T")

MOST_ROWS: Final = 60
"""Maximum rows of one table; the rest is only counted. -v shows all."""


class Verdict(Struct, frozen=True):
    """The verdict: the first line of a report."""

    text: str
    failed: bool


class Lines(Struct, frozen=True):
    """Plain lines of text."""

    lines: tuple[str, ...]


class Grid(Struct, frozen=True):
    """A table; the first column is a key and may be truncated."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    more: str = ""
    """Note on omitted rows, "" if none were omitted."""


class Branch(Struct, frozen=True):
    """A row of a `TreeBlock`: a module or a tensor."""

    name: str
    more: tuple[bool, ...]
    """Whether a sibling follows, for each ancestor below the root and for the row itself."""
    key: str
    """The full key; "" for a module."""
    cells: tuple[str, ...]
    share: float
    """Fraction of the tree's bytes, 0 to 1."""


class Tree(Struct, frozen=True):
    """A table whose first column is a tree; formats without trees show `leaf_table`."""

    title: str
    headers: tuple[str, ...]
    """Headers of the cells; the tree's column precedes them, the share follows."""
    rows: tuple[Branch, ...]
    more: str = ""

    @property
    def flat(self) -> Grid:
        """The leaves as a table, each under its full key."""
        rows = tuple((row.key, *row.cells) for row in self.rows if row.key)
        return Grid(self.title, ("key", *self.headers), rows, self.more)


class Problem(Struct, frozen=True):
    """One finding, or several that differ in layer numbers only."""

    level: str
    code: str
    message: str
    fix: str


class Problems(Struct, frozen=True):
    """Findings and the count of each level ("1 error, 2 notes")."""

    summary: str
    problems: tuple[Problem, ...]


Block = Verdict | Lines | Grid | Tree | Problems


def by_path(
    findings: tuple[FindingReport, ...], *, several: bool
) -> dict[str, tuple[FindingReport, ...]]:
    """Group findings by checkpoint path; one group under "" if there is a single checkpoint."""
    paths = sorted({f.path for f in findings}, key=natural)
    if not several and len(paths) < 2:
        return {"": findings}
    return {path: tuple(f for f in findings if f.path == path) for path in paths}


def problems(
    findings: tuple[FindingReport, ...], style: Style, path: str = ""
) -> Iterator[Problems]:
    """Yield the findings of one checkpoint as a block; nothing if there are none."""
    if not findings:
        return
    levels = {
        level: sum(f.level == level for f in findings) for level in ("error", "warning", "note")
    }
    summary = ", ".join(count(n, level) for level, n in levels.items() if n)
    folded = groups(((f.key, (f.code, f.level), f) for f in findings), style)
    of = f"{path}: " if path else ""
    yield Problems(of + summary, tuple(_problem(g.key, g.items) for g in folded))


def _problem(key: str, findings: tuple[FindingReport, ...]) -> Problem:
    first = findings[0]
    times = f" (x{len(findings)})" if len(findings) > 1 else ""
    message, fix = first.message, first.fix
    if first.key != key and first.key:
        whole = first.facts.get("keys")
        for one in (first.key, *(whole if isinstance(whole, list) else ())):
            message = message.replace(f"`{one}`", f"`{pattern(one)}`")
        message = message.replace(first.key, key)
        # A plan takes no patterns: the fix of the first finding serves as the example.
        fix = f"{fix} (-v shows all)" if "plan" in first.facts else fix.replace(first.key, key)
    return Problem(first.level, first.code, f"{message}{times}", fix)


def skipped_lines(skipped: Iterable[SkippedReport]) -> Iterator[Lines]:
    paths: dict[tuple[str, str], list[str]] = {}
    for one in dict.fromkeys(skipped):
        paths.setdefault((one.what, one.reason), []).append(one.path)
    lines = tuple(
        f"not checked: {what}: {reason}{_of(where)}" for (what, reason), where in paths.items()
    )
    if lines:
        yield Lines(lines)


def _of(paths: list[str]) -> str:
    """Return " (PATH and N more)", or "" if the entry names no checkpoint."""
    if not paths[0]:
        return ""
    return f" ({paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''})"


def silenced_lines(silenced: Iterable[SilencedReport]) -> Iterator[Lines]:
    lines = tuple(
        f"{'waived' if s.by == 'waiver' else 'known'}: {s.finding.code} {s.finding.name}"
        f"{f' of `{s.finding.key}`' if s.finding.key else ''}"
        f"{f' in {s.finding.path}' if s.finding.path else ''}: {s.reason}"
        for s in silenced
    )
    if lines:
        yield Lines(lines)


def groups(items: Iterable[tuple[str, object, T]], style: Style) -> list[Folded[T]]:
    """Group (key, attributes, item) by layer pattern; with -v, one group for each item."""
    if style.verbosity < 1:
        return fold(items)
    return [Folded(key, (item,)) for key, _, item in items]


_DULL: Final = {"count": "1", "device": "cpu", "kind": "", "what": ""}
"""Column -> usual value; a column is omitted if every row has that value."""


def grid(
    title: str, headers: tuple[str, ...], rows: Sequence[tuple[str, ...]], style: Style
) -> Grid:
    """Build the table, without uninformative columns and rows beyond `MAX_TABLE_ROWS`."""
    keep = _telling(headers, rows)
    shown, more = _first(rows, style)
    return Grid(
        title,
        tuple(headers[i] for i in keep),
        tuple(tuple(row[i] for i in keep) for row in shown),
        more,
    )


def tree_of(title: str, headers: tuple[str, ...], rows: Sequence[Branch], style: Style) -> Tree:
    """Build the tree, without uninformative columns and rows beyond `MAX_TABLE_ROWS`."""
    keep = _telling(headers, [row.cells for row in rows if row.key])
    shown, more = _first(rows, style)
    return Tree(
        title,
        tuple(headers[i] for i in keep),
        tuple(replace(row, cells=tuple(row.cells[i] for i in keep)) for row in shown),
        more,
    )


def _telling(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[int]:
    return [
        i
        for i, name in enumerate(headers)
        if name not in _DULL or any(row[i] != _DULL[name] for row in rows)
    ]


def _first(rows: Sequence[T], style: Style) -> tuple[Sequence[T], str]:
    shown = rows if style.verbosity > 0 else rows[:MOST_ROWS]
    left = len(rows) - len(shown)
    return shown, f"... and {left:,} more rows (-v shows all)" if left else ""

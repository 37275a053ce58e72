"""What a person is shown, whatever the format that draws it: lines, tables, findings."""

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
"""Rows of one table before the rest is only counted; -v shows all."""


class Verdict(Struct, frozen=True):
    """The first line."""

    text: str
    failed: bool


class Lines(Struct, frozen=True):
    """A few plain lines."""

    lines: tuple[str, ...]


class Grid(Struct, frozen=True):
    """A table; the first column is a key and may be cut."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    more: str = ""
    """What was left out."""


class Branch(Struct, frozen=True):
    """A row of a tree."""

    name: str
    more: tuple[bool, ...]
    """For its ancestors below the root, and for itself: whether a sibling follows."""
    key: str
    """The whole key; "" for a module."""
    cells: tuple[str, ...]
    share: float
    """Of the whole, 0 to 1."""


class Tree(Struct, frozen=True):
    """A table whose first column is a tree; a format that draws none shows the leaves."""

    title: str
    headers: tuple[str, ...]
    """Of the cells; the tree's own column comes before them, and the share behind."""
    rows: tuple[Branch, ...]
    more: str = ""

    @property
    def flat(self) -> Grid:
        """The leaves alone, each by its whole key."""
        rows = tuple((row.key, *row.cells) for row in self.rows if row.key)
        return Grid(self.title, ("key", *self.headers), rows, self.more)


class Problem(Struct, frozen=True):
    """A finding, or several that differ in layer numbers only."""

    level: str
    code: str
    message: str
    fix: str


class Problems(Struct, frozen=True):
    """All findings, and how many of each level."""

    summary: str
    problems: tuple[Problem, ...]


Block = Verdict | Lines | Grid | Tree | Problems


def by_path(
    findings: tuple[FindingReport, ...], *, several: bool
) -> dict[str, tuple[FindingReport, ...]]:
    """Return the findings of each checkpoint; under "" all of them, where there is only one."""
    paths = sorted({f.path for f in findings}, key=natural)
    if not several and len(paths) < 2:
        return {"": findings}
    return {path: tuple(f for f in findings if f.path == path) for path in paths}


def problems(
    findings: tuple[FindingReport, ...], style: Style, path: str = ""
) -> Iterator[Problems]:
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
        # A plan takes no patterns: the line of the first says how the others look.
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
    """Return which checkpoints of several something is about."""
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
    """Fold (key, form, item) by layer numbers, or with -v leave each by itself."""
    if style.verbosity < 1:
        return fold(items)
    return [Folded(key, (item,)) for key, _, item in items]


_DULL: Final = {"count": "1", "device": "cpu", "kind": "", "what": ""}
"""Columns that are left out where every row says the same as nearly always."""


def grid(
    title: str, headers: tuple[str, ...], rows: Sequence[tuple[str, ...]], style: Style
) -> Grid:
    keep = _telling(headers, rows)
    shown, more = _first(rows, style)
    return Grid(
        title,
        tuple(headers[i] for i in keep),
        tuple(tuple(row[i] for i in keep) for row in shown),
        more,
    )


def tree_of(title: str, headers: tuple[str, ...], rows: Sequence[Branch], style: Style) -> Tree:
    """Return the tree of `rows`, but for the columns and the rows that need not be seen."""
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

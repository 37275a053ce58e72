"""Report -> blocks: what a person is shown, whatever the format that draws it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar, assert_never

from msgspec import Struct

from ckptool.render import Style
from ckptool.render.text import Folded, count, fold, size
from ckptool.report import (
    AnyReport,
    AuditReport,
    CheckpointReport,
    DiffFilesReport,
    DiffModuleReport,
    FactReport,
    FindingReport,
    InspectReport,
    KeyVerdict,
    MigrateReport,
    SkippedReport,
    StateReport,
    TensorReport,
    UnsavedReport,
    VerifyReport,
)

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


Block = Verdict | Lines | Grid | Problems


def blocks(report: AnyReport, style: Style) -> Iterator[Block]:  # noqa: C901 - a case each
    """Yield what to show of `report`, in order."""
    match report:
        case InspectReport():
            for checkpoint in report.checkpoints:
                yield from _checkpoint(checkpoint, style)
        case DiffModuleReport():
            yield Verdict(report.verdict, bool(report.exit_code))
            if style.verbosity >= 0:
                yield from _loading(report, style)
        case DiffFilesReport():
            yield Verdict(report.verdict, bool(report.exit_code))
            if style.verbosity >= 0:
                yield from _revision(report, style)
        case AuditReport():
            yield Verdict(_audit_words(report), bool(report.exit_code))
            if style.verbosity >= 0:
                yield from _audit(report, style)
        case MigrateReport():
            yield from _migration(report, style)
        case VerifyReport():
            yield from _verification(report, style)
        case _:
            assert_never(report)
    if style.verbosity >= 0 or isinstance(report, InspectReport):
        yield from _problems(report.findings, style)
        yield from _skipped(report.skipped)


def _checkpoint(checkpoint: CheckpointReport, style: Style) -> Iterator[Block]:
    tensors = [t for state in checkpoint.states for t in state.tensors]
    parts = (
        checkpoint.container,
        f"{size(checkpoint.nbytes)} on disk",
        count(len(tensors), "tensor"),
        f"{size(sum(t.nbytes for t in tensors))} of elements",
    )
    yield Verdict(f"{checkpoint.path}: {', '.join(parts)}", bool(checkpoint.damage))
    if style.verbosity < 0:
        return
    for state in checkpoint.states:
        yield _state(state, style)
        if state.unsaved:
            title = f"Held by the pickled module{_at(state.at)}, and not in its state_dict()"
            yield _tensors(title, state.unsaved, style)
    rest = [(e.at, e.text) for e in checkpoint.entries]
    if rest:
        yield _grid("Besides tensors", ("place", "holds"), rest, style)
    if checkpoint.metadata:
        yield _grid("Metadata", ("name", "value"), list(checkpoint.metadata.items()), style)


def _at(at: str) -> str:
    return f" at `{at}`" if at else ""


_ROLES: Final = {
    "state_dict": "state_dict",
    "module": "pickled module",
    "optimizer": "optimizer state",
    "tensors": "tensors",
}


def _state(state: StateReport, style: Style) -> Grid:
    elements = sum(t.nbytes for t in state.tensors)
    tied = f", {count(len(state.ties), 'tie')}" if state.ties else ""
    held = f"{count(len(state.tensors), 'tensor')}, {size(elements)}{tied}"
    title = f"{_ROLES[state.role]}{_at(state.at)}: {held}"
    return _tensors(title, state.tensors, style)


def _tensors(title: str, tensors: tuple[TensorReport, ...], style: Style) -> Grid:
    groups = _groups(
        ((t.key, (t.dtype, t.shape, t.device, t.kind, t.layout), t) for t in tensors), style
    )
    rows = [
        (
            g.key,
            str(len(g.items)),
            _dtype(g.items[0]),
            str(list(g.items[0].shape)),
            size(sum(t.nbytes for t in g.items)),
            g.items[0].device,
            g.items[0].kind,
        )
        for g in groups
    ]
    return _grid(title, ("key", "count", "dtype", "shape", "size", "device", "kind"), rows, style)


def _groups(items: Iterable[tuple[str, object, T]], style: Style) -> list[Folded[T]]:
    """Fold (key, form, item) by layer numbers, or with -v leave each by itself."""
    if style.verbosity < 1:
        return fold(items)
    return [Folded(key, (item,)) for key, _, item in items]


def _dtype(tensor: TensorReport) -> str:
    return tensor.dtype if tensor.layout == "strided" else f"{tensor.dtype} ({tensor.layout})"


def _loading(report: DiffModuleReport, style: Style) -> Iterator[Block]:
    counts = (
        f"{len(report.matched)} match",
        f"{len(report.missing_keys)} missing",
        f"{len(report.unexpected_keys)} unexpected",
        f"{len(report.mismatched_keys)} of another shape",
    )
    yield Lines(
        (
            f"{report.path} against {report.module}",
            f"keys: {', '.join(counts)}; {100 * report.coverage:.0f}% of the parameters would load",
            *report.notes,
        )
    )
    if report.explanation:
        yield from _explanation(report.explanation, style)
        return
    if report.verdicts:
        yield _verdict_grid(report.verdicts, style)
    if report.unsaved:
        yield _unsaved(report.unsaved, style)


def _explanation(facts: tuple[FactReport, ...], style: Style) -> Iterator[Block]:
    yield _grid(
        "All that is known of this key",
        ("fact", "value"),
        [(f.name, f.value) for f in facts],
        style,
    )


def _verdict_grid(verdicts: tuple[KeyVerdict, ...], style: Style) -> Grid:
    groups = _groups(((v.key, (v.problem, v.code), v) for v in verdicts), style)
    rows = [
        (
            g.key,
            str(len(g.items)),
            g.items[0].problem,
            g.items[0].level or "ignored",
            g.items[0].code,
        )
        for g in groups
    ]
    return _grid(
        "Keys that do not match", ("key", "count", "problem", "matters", "rule"), rows, style
    )


def _unsaved(unsaved: tuple[UnsavedReport, ...], style: Style) -> Grid:
    forms = ((u.key, (u.kind, u.dtype, u.shape, u.constancy, u.follows_to), u) for u in unsaved)
    rows = [
        (
            g.key,
            str(len(g.items)),
            g.items[0].kind,
            g.items[0].dtype,
            str(list(g.items[0].shape)),
            size(sum(u.nbytes for u in g.items)),
            g.items[0].constancy,
            "follows" if g.items[0].follows_to else "stays",
        )
        for g in _groups(forms, style)
    ]
    headers = ("key", "count", "kind", "dtype", "shape", "size", "value", "on .to()")
    return _grid("State that no state_dict of this module holds", headers, rows, style)


def _revision(report: DiffFilesReport, style: Style) -> Iterator[Block]:
    counts = (
        f"{len(report.added_keys)} added",
        f"{len(report.removed_keys)} removed",
        f"{len(report.changed_keys)} changed",
    )
    place = (
        f", `{report.old_at or '.'}` against `{report.new_at or '.'}`"
        if report.old_at != report.new_at
        else ""
    )
    yield Lines((f"{report.old} against {report.new}{place}", f"keys: {', '.join(counts)}"))
    if report.explanation:
        yield from _explanation(report.explanation, style)
        return
    for title, keys in (
        ("Added", report.added_keys),
        ("Removed", report.removed_keys),
        ("Changed in value", report.value_keys),
        ("Plain data that differs", report.changed_entries),
    ):
        if keys:
            yield _grid(title, ("key", "count"), _key_rows(keys, style), style)


def _key_rows(keys: tuple[str, ...], style: Style) -> list[tuple[str, ...]]:
    return [(g.key, str(len(g.items))) for g in _groups(((k, "", k) for k in keys), style)]


def _audit_words(report: AuditReport) -> str:
    if not report.unsaved and not report.findings:
        return "a state_dict holds everything"
    if not report.unsaved:
        return "a state_dict holds every tensor"
    return f"{count(len(report.unsaved), 'tensor')} that no state_dict holds"


def _audit(report: AuditReport, style: Style) -> Iterator[Block]:
    parameters = sum(t.nbytes for t in report.parameters)
    buffers = sum(t.nbytes for t in report.persistent_buffers)
    saved = (
        f"{count(len(report.parameters), 'parameter')} ({size(parameters)})",
        f"{count(len(report.persistent_buffers), 'persistent buffer')} ({size(buffers)})",
    )
    yield Lines((report.module, f"saved: {', '.join(saved)}"))
    if report.unsaved:
        yield _unsaved(report.unsaved, style)


def _verification(report: VerifyReport, style: Style) -> Iterator[Block]:
    yield Verdict(report.verdict, bool(report.exit_code))
    if style.verbosity < 0:
        return
    place = f" at `{report.at}`" if report.at else ""
    yield Lines((f"{report.path}{place} with {report.module}, on {report.device}", *report.notes))
    rows = [
        (one.level, one.status, one.device, "; ".join(filter(None, (one.reason, *one.details))))
        for one in report.levels
    ]
    yield _grid("Levels", ("level", "status", "ran on", "why, and what was seen"), rows, style)


def _migration(report: MigrateReport, style: Style) -> Iterator[Block]:
    yield Verdict(report.verdict, bool(report.exit_code))
    if style.verbosity < 0:
        return
    place = f" at `{report.at}`" if report.at else ""
    into = f" for {report.module}" if report.module else ""
    target = report.target or "nothing written"
    passed = [f"checked: {c.name}: {c.reason}" for c in report.checks if c.result == "passed"]
    yield Lines((f"{report.source}{place}{into} -> {target}", *passed, *report.notes))
    rows = [(s.op, s.before, s.after, s.source or "-", s.why) for s in report.steps]
    if rows:
        yield _grid("Plan", ("step", "before", "after", "value from", "why"), rows, style)
    lost = [f"{s.op} {s.before} loses {s.loses}" for s in report.steps if s.loses]
    if lost:
        yield Lines(tuple(lost))


def _problems(findings: tuple[FindingReport, ...], style: Style) -> Iterator[Problems]:
    if not findings:
        return
    levels = {
        level: sum(f.level == level for f in findings) for level in ("error", "warning", "note")
    }
    summary = ", ".join(count(n, level) for level, n in levels.items() if n)
    groups = _groups(((f.key, (f.code, f.level), f) for f in findings), style)
    yield Problems(summary, tuple(_problem(g.key, g.items) for g in groups))


def _problem(key: str, findings: tuple[FindingReport, ...]) -> Problem:
    first = findings[0]
    times = f" (x{len(findings)})" if len(findings) > 1 else ""
    swap = first.key != key and bool(first.key)
    return Problem(
        first.level,
        first.code,
        (first.message.replace(first.key, key) if swap else first.message) + times,
        first.fix.replace(first.key, key) if swap else first.fix,
    )


def _skipped(skipped: Iterable[SkippedReport]) -> Iterator[Lines]:
    lines = tuple(f"not checked: {s.what}: {s.reason}" for s in dict.fromkeys(skipped))
    if lines:
        yield Lines(lines)


_DULL: Final = {"count": "1", "device": "cpu", "kind": ""}
"""Columns that are left out where every row says the same as nearly always."""


def _grid(
    title: str, headers: tuple[str, ...], rows: Sequence[tuple[str, ...]], style: Style
) -> Grid:
    keep = [
        i
        for i, name in enumerate(headers)
        if name not in _DULL or any(row[i] != _DULL[name] for row in rows)
    ]
    shown = rows if style.verbosity > 0 else rows[:MOST_ROWS]
    left = len(rows) - len(shown)
    return Grid(
        title,
        tuple(headers[i] for i in keep),
        tuple(tuple(row[i] for i in keep) for row in shown),
        f"... and {left:,} more rows (-v shows all)" if left else "",
    )

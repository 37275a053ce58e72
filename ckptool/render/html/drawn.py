"""Report -> trees, treemaps and histograms, where the report has their data."""

from collections.abc import Iterator, Sequence

from msgspec import UnsetType

from ckptool.render import Style
from ckptool.render.html import items
from ckptool.render.html.beside import NONE, Leaf, tree
from ckptool.render.html.histograms import histograms
from ckptool.render.html.items import described, legend_of, shares, tones_of
from ckptool.render.html.parts import Part, Tree
from ckptool.render.html.treemap import treemap
from ckptool.report import (
    AnyReport,
    AuditReport,
    DiffFilesReport,
    DiffModuleReport,
    DrawingReport,
    InspectReport,
    TensorReport,
    UnsavedReport,
)


def state(report: AnyReport, style: Style) -> Tree | None:
    """Build the side-by-side tree of an audit or module diff; None for other reports."""
    match report:
        case AuditReport():
            sides = ("In a state_dict", "In the module")
            return tree("state", "State of the module", sides, _audit_leaves(report), style)
        case DiffModuleReport():
            leaves = _loading_leaves(report, _drawing(report))
            return tree(
                "state", "State side by side", ("In the file", "In the module"), leaves, style
            )
        case _:
            return None


def sizes(report: AnyReport) -> Iterator[Part | None]:
    """Yield the treemap of bytes, histograms of changes and the size by dtype; None: no data."""
    drawing = _drawing(report)
    match report:
        case InspectReport():
            yield from _inspection(report)
        case AuditReport():
            unsaved = frozenset(u.key for u in report.unsaved)
            yield from _bytes(items.audit_tensors(report), unsaved, "in no state_dict")
        case DiffModuleReport():
            yield from _loading_bytes(report, drawing)
        case DiffFilesReport():
            changed = items.change_items(report, drawing)
            yield treemap(
                "bytes", "Change by module", changed, items.CHANGES, "relative change", ""
            )
            yield histograms("histograms", "How far elements moved", report.changes)
            yield shares("dtypes", drawing.tensors)
        case _:
            yield from _bytes(drawing.tensors, frozenset(), "")


def _drawing(report: AnyReport) -> DrawingReport:
    return DrawingReport() if isinstance(report.drawing, UnsetType) else report.drawing


def _inspection(report: InspectReport) -> Iterator[Part | None]:
    several = len(report.checkpoints) > 1
    for number, one in enumerate(report.checkpoints):
        tensors, found = items.checkpoint_items(one)
        title = f"Bytes by module: {one.path}" if several else "Bytes by module"
        tones = legend_of(tones_of(tensors))
        yield treemap(f"bytes-{number}", title, found, tones, "dtype", "in no state_dict")
    yield shares("dtypes", [t for c in report.checkpoints for s in c.states for t in s.tensors])


def _loading_bytes(report: DiffModuleReport, drawing: DrawingReport) -> Iterator[Part | None]:
    """Yield charts of the file's tensors; tensors missing from it or not loading are marked."""
    missing = frozenset(report.missing_keys)
    absent = tuple(t for t in drawing.expected if t.key in missing)
    unsaved = frozenset(u.key for u in report.unsaved)
    marked = missing | unsaved | {*report.unexpected_keys, *report.mismatched_keys}
    everything: tuple[TensorReport | UnsavedReport, ...] = (
        *drawing.tensors,
        *absent,
        *report.unsaved,
    )
    yield from _bytes(everything, marked, "not in the file, or does not load")


def _bytes(
    tensors: Sequence[TensorReport | UnsavedReport], marked: frozenset[str], mark: str
) -> Iterator[Part | None]:
    tones = tones_of(tensors)
    found = items.items_of(tensors, tones, marked=marked)
    yield treemap("bytes", "Bytes by module", found, legend_of(tones), "dtype", mark)
    yield shares("dtypes", tensors)


def _loading_leaves(report: DiffModuleReport, drawing: DrawingReport) -> list[Leaf]:
    found = {t.key: t for t in drawing.tensors}
    wanted = {t.key: t for t in drawing.expected}
    mismatched = frozenset(report.mismatched_keys)
    missing, unexpected = frozenset(report.missing_keys), frozenset(report.unexpected_keys)
    leaves = [
        Leaf(key, _text(found, key), _text(wanted, key), status, tone)
        for key in dict.fromkeys((*wanted, *report.missing_keys, *found, *report.unexpected_keys))
        for status, tone in [_status(key, missing, unexpected, mismatched)]
    ]
    leaves += [
        Leaf(
            u.key,
            "held by the pickled module" if u.in_file else NONE,
            described(u),
            "in no state_dict",
            "bad",
        )
        for u in report.unsaved
    ]
    return leaves


def _status(
    key: str, missing: frozenset[str], unexpected: frozenset[str], mismatched: frozenset[str]
) -> tuple[str, str]:
    if key in missing:
        return "missing", "bad"
    if key in unexpected:
        return "unexpected", "bad"
    return ("another shape", "bad") if key in mismatched else ("match", "ok")


def _text(tensors: dict[str, TensorReport], key: str) -> str:
    return described(tensors[key]) if key in tensors else NONE


def _audit_leaves(report: AuditReport) -> Iterator[Leaf]:
    for t in (*report.parameters, *report.persistent_buffers):
        yield Leaf(t.key, described(t), described(t), "saved", "ok")
    for u in report.unsaved:
        yield Leaf(u.key, NONE, described(u), "in no state_dict", "bad")

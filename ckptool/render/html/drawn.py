"""Report -> its trees, treemaps and histograms, where it has what they are made of."""

from collections.abc import Iterator, Sequence

from msgspec import UnsetType

from ckptool.render import Style
from ckptool.render.html import sizes
from ckptool.render.html.beside import Leaf, tree
from ckptool.render.html.histograms import histograms
from ckptool.render.html.parts import Part, Tree
from ckptool.render.html.sizes import described, items, legend_of, shares, tones_of
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

_NONE = "\N{EM DASH}"


def parts(report: AnyReport, style: Style) -> Iterator[Part | None]:
    """Yield the tree of what agrees and what does not, and the treemap of bytes."""
    drawing = DrawingReport() if isinstance(report.drawing, UnsetType) else report.drawing
    match report:
        case InspectReport():
            yield from _inspection(report)
        case AuditReport():
            sides = ("In a state_dict", "In the module")
            yield tree("state", "State of the module", sides, _audit_leaves(report), style)
            unsaved = frozenset(u.key for u in report.unsaved)
            yield from _bytes(sizes.audit_tensors(report), unsaved, "in no state_dict")
        case DiffModuleReport():
            yield _loading_tree(report, drawing, style)
            faulty = frozenset((*report.unexpected_keys, *report.mismatched_keys))
            yield from _bytes(drawing.tensors, faulty, "does not load")
        case DiffFilesReport():
            changed = sizes.change_items(report, drawing)
            yield treemap(
                "bytes", "Change by module", changed, sizes.CHANGES, "relative change", ""
            )
            yield histograms("histograms", "How far elements moved", report.changes)
        case _:
            yield from _bytes(drawing.tensors, frozenset(), "")


def last(report: AnyReport) -> Iterator[Part | None]:
    """Yield the size of each dtype."""
    match report:
        case InspectReport():
            found = [t for c in report.checkpoints for s in c.states for t in s.tensors]
            yield shares("dtypes", found)
        case AuditReport():
            yield shares("dtypes", sizes.audit_tensors(report))
        case _:
            drawing = report.drawing
            yield None if isinstance(drawing, UnsetType) else shares("dtypes", drawing.tensors)


def _inspection(report: InspectReport) -> Iterator[Part | None]:
    several = len(report.checkpoints) > 1
    for number, one in enumerate(report.checkpoints):
        tensors, found = sizes.checkpoint_items(one)
        title = f"Bytes by module: {one.path}" if several else "Bytes by module"
        tones = legend_of(tones_of(tensors))
        yield treemap(f"bytes-{number}", title, found, tones, "dtype", "in no state_dict")


def _bytes(
    tensors: Sequence[TensorReport | UnsavedReport], marked: frozenset[str], mark: str
) -> Iterator[Part | None]:
    tones = tones_of(tensors)
    found = items(tensors, tones, marked=marked)
    yield treemap("bytes", "Bytes by module", found, legend_of(tones), "dtype", mark)


def _loading_tree(report: DiffModuleReport, drawing: DrawingReport, style: Style) -> Tree | None:
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
            "held by the pickled module" if u.in_file else _NONE,
            described(u),
            "in no state_dict",
            "bad",
        )
        for u in report.unsaved
    ]
    return tree("state", "State side by side", ("In the file", "In the module"), leaves, style)


def _status(
    key: str, missing: frozenset[str], unexpected: frozenset[str], mismatched: frozenset[str]
) -> tuple[str, str]:
    if key in missing:
        return "missing", "bad"
    if key in unexpected:
        return "unexpected", "bad"
    return ("another shape", "bad") if key in mismatched else ("match", "ok")


def _text(tensors: dict[str, TensorReport], key: str) -> str:
    return described(tensors[key]) if key in tensors else _NONE


def _audit_leaves(report: AuditReport) -> Iterator[Leaf]:
    for t in (*report.parameters, *report.persistent_buffers):
        yield Leaf(t.key, described(t), described(t), "saved", "ok")
    for u in report.unsaved:
        yield Leaf(u.key, _NONE, described(u), "in no state_dict", "bad")

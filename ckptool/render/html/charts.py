"""Report -> trees, treemaps and histograms, where the report has their data."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from msgspec import UnsetType

from ckptool.render import RenderOptions
from ckptool.render.html import treemap_items
from ckptool.render.html.components import PageSection, SideBySideSection
from ckptool.render.html.histograms import build_histograms_section
from ckptool.render.html.side_by_side import ABSENT_MARK, SideBySideLeaf, build_side_by_side_tree
from ckptool.render.html.treemap import build_treemap_section
from ckptool.render.html.treemap_items import (
    assign_dtype_tones,
    build_dtype_legend,
    build_dtype_shares_section,
    describe_tensor,
)
from ckptool.reports.audit import AuditReport
from ckptool.reports.common import DrawingReport, TensorReport, UnsavedTensorReport
from ckptool.reports.diff import DiffModuleReport
from ckptool.reports.diff_files import DiffFilesReport
from ckptool.reports.inspect import InspectReport

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport


def build_state_tree(report: "AnyReport", options: RenderOptions) -> SideBySideSection | None:
    """Build the side-by-side tree of an audit or module diff; None for other reports."""
    match report:
        case AuditReport():
            sides = ("In a state_dict", "In the module")
            return build_side_by_side_tree(
                "State of the module", sides, _iter_audit_leaves(report), options
            )
        case DiffModuleReport():
            leaves = _build_module_diff_leaves(report, _get_drawing(report))
            return build_side_by_side_tree(
                "State side by side", ("In the file", "In the module"), leaves, options
            )
        case _:
            return None


def build_charts(report: "AnyReport") -> Iterator[PageSection | None]:
    """Yield the treemap of bytes, histograms of changes and the size by dtype; None: no data."""
    drawing = _get_drawing(report)
    match report:
        case InspectReport():
            yield from _build_inspect_charts(report)
        case AuditReport():
            unsaved = frozenset(u.key for u in report.unsaved)
            yield from _build_bytes_charts(
                treemap_items.collect_audit_tensors(report), unsaved, "not in the state_dict"
            )
        case DiffModuleReport():
            yield from _build_module_diff_charts(report, drawing)
        case DiffFilesReport():
            changed_items = treemap_items.iter_change_items(report, drawing)
            yield build_treemap_section(
                "bytes",
                "Change by module",
                changed_items,
                treemap_items.CHANGE_LEGEND,
                "relative change",
                "",
            )
            yield build_histograms_section("histograms", "How far elements moved", report.changes)
            yield build_dtype_shares_section(drawing.tensors)
        case _:
            yield from _build_bytes_charts(drawing.tensors, frozenset(), "")


def _get_drawing(report: "AnyReport") -> DrawingReport:
    return DrawingReport() if isinstance(report.drawing, UnsetType) else report.drawing


def _build_inspect_charts(report: InspectReport) -> Iterator[PageSection | None]:
    multiple_checkpoints = len(report.checkpoints) > 1
    for index, checkpoint in enumerate(report.checkpoints):
        tensors, tile_items = treemap_items.build_checkpoint_items(checkpoint)
        title = f"Bytes by module: {checkpoint.path}" if multiple_checkpoints else "Bytes by module"
        tones = build_dtype_legend(assign_dtype_tones(tensors))
        yield build_treemap_section(
            f"bytes-{index}", title, tile_items, tones, "dtype", "not in the state_dict"
        )
    yield build_dtype_shares_section(
        [t for c in report.checkpoints for s in c.states for t in s.tensors]
    )


def _build_module_diff_charts(
    report: DiffModuleReport, drawing: DrawingReport
) -> Iterator[PageSection | None]:
    """Yield charts of the file's tensors; tensors missing from it or not loading are marked."""
    missing = frozenset(report.missing_keys)
    missing_tensors = tuple(t for t in drawing.expected if t.key in missing)
    unsaved = frozenset(u.key for u in report.unsaved)
    marked_keys = missing | unsaved | {*report.unexpected_keys, *report.mismatched_keys}
    marked_keys |= report.mistyped_keys.keys()
    tensors: tuple[TensorReport | UnsavedTensorReport, ...] = (
        *drawing.tensors,
        *missing_tensors,
        *report.unsaved,
    )
    yield from _build_bytes_charts(tensors, marked_keys, "not in the file, or does not load")


def _build_bytes_charts(
    tensors: Sequence[TensorReport | UnsavedTensorReport], marked_keys: frozenset[str], mark: str
) -> Iterator[PageSection | None]:
    tones = assign_dtype_tones(tensors)
    tile_items = treemap_items.iter_tensor_items(tensors, tones, marked_keys=marked_keys)
    yield build_treemap_section(
        "bytes", "Bytes by module", tile_items, build_dtype_legend(tones), "dtype", mark
    )
    yield build_dtype_shares_section(tensors)


def _build_module_diff_leaves(
    report: DiffModuleReport, drawing: DrawingReport
) -> list[SideBySideLeaf]:
    actual = {t.key: t for t in drawing.tensors}
    expected = {t.key: t for t in drawing.expected}
    mismatched_keys = frozenset((*report.mismatched_keys, *report.mistyped_keys))
    missing, unexpected = frozenset(report.missing_keys), frozenset(report.unexpected_keys)
    leaves = [
        SideBySideLeaf(
            key,
            _describe_or_absent(actual, key),
            _describe_or_absent(expected, key),
            # torch fills it in, as BatchNorm's counter of files from before version 2.
            "filled in by loading" if status == "match" and key not in actual else status,
            tone,
        )
        for key in dict.fromkeys(
            (*expected, *report.missing_keys, *actual, *report.unexpected_keys)
        )
        for status, tone in [_classify_key(key, missing, unexpected, mismatched_keys)]
    ]
    leaves += [
        SideBySideLeaf(
            u.key,
            "in the pickled module" if u.in_file else ABSENT_MARK,
            describe_tensor(u),
            "not in the state_dict",
            "bad",
        )
        for u in report.unsaved
    ]
    return leaves


def _classify_key(
    key: str, missing: frozenset[str], unexpected: frozenset[str], mismatched_keys: frozenset[str]
) -> tuple[str, str]:
    if key in missing:
        return "missing", "bad"
    if key in unexpected:
        return "unexpected", "bad"
    return ("shape mismatch", "bad") if key in mismatched_keys else ("match", "ok")


def _describe_or_absent(tensors: dict[str, TensorReport], key: str) -> str:
    return describe_tensor(tensors[key]) if key in tensors else ABSENT_MARK


def _iter_audit_leaves(report: AuditReport) -> Iterator[SideBySideLeaf]:
    for t in (*report.parameters, *report.persistent_buffers):
        yield SideBySideLeaf(t.key, describe_tensor(t), describe_tensor(t), "saved", "ok")
    for u in report.unsaved:
        yield SideBySideLeaf(u.key, ABSENT_MARK, describe_tensor(u), "not in the state_dict", "bad")

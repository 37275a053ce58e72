"""Tensors of a report -> TreemapItem and the share of each dtype."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from ckptool.model import join_key
from ckptool.phrases import format_size
from ckptool.render.html.components import DtypeShare, DtypeSharesSection
from ckptool.render.html.treemap import TreemapItem
from ckptool.reports.audit import AuditReport
from ckptool.reports.common import DrawingReport, TensorReport, UnsavedTensorReport
from ckptool.reports.diff_files import ChangeReport, DiffFilesReport
from ckptool.reports.inspect import CheckpointReport

MAX_DTYPE_TONES: Final = 8
"""Number of tones for dtypes; the last one is shared by all remaining dtypes."""
CHANGE_LEGEND: Final = {
    "r0": "unchanged",
    "r1": "changed by less than 0.1%",
    "r2": "0.1% to 1%",
    "r3": "1% to 10%",
    "r4": "10% to 100%",
    "r5": "more than 100%",
    "rx": "changed, by an unknown amount",
    "rs": "different shape or dtype",
    "ra": "added",
    "rd": "removed",
}
_CHANGE_LIMITS: Final = ((0.001, "r1"), (0.01, "r2"), (0.1, "r3"), (1.0, "r4"))


def assign_dtype_tones(tensors: Iterable[TensorReport | UnsavedTensorReport]) -> dict[str, str]:
    """Assign a tone to each dtype, in descending order of bytes."""
    nbytes: dict[str, int] = {}
    for tensor in tensors:
        nbytes[tensor.dtype] = nbytes.get(tensor.dtype, 0) + tensor.nbytes
    ordered_dtypes = sorted(nbytes, key=lambda dtype: (-nbytes[dtype], dtype))
    return {dtype: f"d{min(i, MAX_DTYPE_TONES - 1)}" for i, dtype in enumerate(ordered_dtypes)}


def build_dtype_legend(tones: Mapping[str, str]) -> dict[str, str]:
    """Return tone -> its dtypes, comma-separated."""
    legend: dict[str, str] = {}
    for dtype, tone in tones.items():
        legend[tone] = f"{legend[tone]}, {dtype}" if tone in legend else dtype
    return legend


def iter_tensor_items(
    tensors: Iterable[TensorReport | UnsavedTensorReport],
    tones: Mapping[str, str],
    prefix: str = "",
    marked_keys: frozenset[str] = frozenset(),
) -> Iterator[TreemapItem]:
    """Yield an item for each tensor; `prefix` precedes its key, "" for none."""
    for t in tensors:
        key = join_key(prefix, t.key)
        yield TreemapItem(key, t.nbytes, tones[t.dtype], describe_tensor(t), t.key in marked_keys)


def describe_tensor(tensor: TensorReport | UnsavedTensorReport) -> str:
    """Return dtype and shape: "float32 [2, 3]"."""
    return f"{tensor.dtype} {list(tensor.shape)}"


def build_checkpoint_items(
    checkpoint: CheckpointReport,
) -> tuple[list[TensorReport], list[TreemapItem]]:
    """Return the tensors of a checkpoint and their items; unsaved tensors are marked."""
    tensors = [t for state in checkpoint.states for t in (*state.tensors, *state.unsaved)]
    tones = assign_dtype_tones(tensors)
    tile_items: list[TreemapItem] = []
    for state in checkpoint.states:
        unsaved_keys = frozenset(t.key for t in state.unsaved)
        tile_items += iter_tensor_items(
            (*state.tensors, *state.unsaved), tones, state.at, unsaved_keys
        )
    return tensors, tile_items


def collect_audit_tensors(report: AuditReport) -> tuple[TensorReport | UnsavedTensorReport, ...]:
    return (*report.parameters, *report.persistent_buffers, *report.unsaved)


def iter_change_items(report: DiffFilesReport, drawing: DrawingReport) -> Iterator[TreemapItem]:
    """Yield the tensors of both files, with a tone for their relative change."""
    changes_by_key = {change.key: change for change in report.changes}
    added_keys, value_keys = frozenset(report.added_keys), frozenset(report.value_keys)
    structure_keys, removed_keys = (
        frozenset(report.changed_keys) - value_keys,
        frozenset(report.removed_keys),
    )
    for t in drawing.tensors:
        tone = "ra" if t.key in added_keys else "rs" if t.key in structure_keys else "r0"
        if t.key in value_keys or (t.key in changes_by_key and tone == "r0"):
            tone = _select_change_tone(changes_by_key.get(t.key))
        yield TreemapItem(t.key, t.nbytes, tone, f"{describe_tensor(t)}, {CHANGE_LEGEND[tone]}")
    for t in drawing.expected:
        if t.key in removed_keys:
            yield TreemapItem(t.key, t.nbytes, "rd", f"{describe_tensor(t)}, {CHANGE_LEGEND['rd']}")


def _select_change_tone(change: ChangeReport | None) -> str:
    if change is None or change.relative_l2 is None:
        return "rx"
    if not change.changed:
        return "r0"
    return next((tone for limit, tone in _CHANGE_LIMITS if change.relative_l2 < limit), "r5")


def build_dtype_shares_section(
    tensors: Sequence[TensorReport | UnsavedTensorReport],
) -> DtypeSharesSection | None:
    """Build the table of bytes by dtype; None if there are no tensors."""
    tones = assign_dtype_tones(tensors)
    total = sum(t.nbytes for t in tensors)
    if not tensors:
        return None
    by_dtype = {dtype: [t.nbytes for t in tensors if t.dtype == dtype] for dtype in tones}
    return DtypeSharesSection(
        id="dtypes",
        title="Size by dtype",
        shares=tuple(
            DtypeShare(dtype, tones[dtype], len(sizes), format_size(sum(sizes)),
                  round(100 * sum(sizes) / total, 1) if total else 0.0)
            for dtype, sizes in by_dtype.items()
        ),
    )  # fmt: skip

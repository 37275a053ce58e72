"""Tensors of a report -> TreemapItem and the share of each dtype."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from ckptool.render.html.parts import Share, Shares
from ckptool.render.html.treemap import Item
from ckptool.render.text import size
from ckptool.report import (
    AuditReport,
    ChangeReport,
    CheckpointReport,
    DiffFilesReport,
    DrawingReport,
    TensorReport,
    UnsavedReport,
)

DTYPES: Final = 8
"""Number of tones for dtypes; the last one is shared by all remaining dtypes."""
CHANGES: Final = {
    "r0": "unchanged",
    "r1": "changed by less than 0.1%",
    "r2": "0.1% to 1%",
    "r3": "1% to 10%",
    "r4": "10% to 100%",
    "r5": "more than 100%",
    "rx": "changed, how much was not measured",
    "rs": "another shape or dtype",
    "ra": "added",
    "rd": "removed",
}
_LIMITS: Final = ((0.001, "r1"), (0.01, "r2"), (0.1, "r3"), (1.0, "r4"))


def tones_of(tensors: Iterable[TensorReport | UnsavedReport]) -> dict[str, str]:
    """Assign a tone to each dtype, in descending order of bytes."""
    nbytes: dict[str, int] = {}
    for tensor in tensors:
        nbytes[tensor.dtype] = nbytes.get(tensor.dtype, 0) + tensor.nbytes
    ordered = sorted(nbytes, key=lambda dtype: (-nbytes[dtype], dtype))
    return {dtype: f"d{min(i, DTYPES - 1)}" for i, dtype in enumerate(ordered)}


def legend_of(tones: Mapping[str, str]) -> dict[str, str]:
    """Return tone -> its dtypes, comma-separated."""
    legend: dict[str, str] = {}
    for dtype, tone in tones.items():
        legend[tone] = f"{legend[tone]}, {dtype}" if tone in legend else dtype
    return legend


def items_of(
    tensors: Iterable[TensorReport | UnsavedReport],
    tones: Mapping[str, str],
    prefix: str = "",
    marked: frozenset[str] = frozenset(),
) -> Iterator[Item]:
    """Yield an item for each tensor; `prefix` precedes its key, "" for none."""
    for t in tensors:
        key = f"{prefix}.{t.key}" if prefix else t.key
        yield Item(key, t.nbytes, tones[t.dtype], described(t), t.key in marked)


def described(tensor: TensorReport | UnsavedReport) -> str:
    """Return dtype and shape: "float32 [2, 3]"."""
    return f"{tensor.dtype} {list(tensor.shape)}"


def checkpoint_items(one: CheckpointReport) -> tuple[list[TensorReport], list[Item]]:
    """Return the tensors of a checkpoint and their items; unsaved tensors are marked."""
    tensors = [t for state in one.states for t in (*state.tensors, *state.unsaved)]
    tones = tones_of(tensors)
    drawn: list[Item] = []
    for state in one.states:
        unsaved = frozenset(t.key for t in state.unsaved)
        drawn += items_of((*state.tensors, *state.unsaved), tones, state.at, unsaved)
    return tensors, drawn


def audit_tensors(report: AuditReport) -> tuple[TensorReport | UnsavedReport, ...]:
    return (*report.parameters, *report.persistent_buffers, *report.unsaved)


def change_items(report: DiffFilesReport, drawing: DrawingReport) -> Iterator[Item]:
    """Yield the tensors of both files, with a tone for their relative change."""
    measured = {change.key: change for change in report.changes}
    added, values = frozenset(report.added_keys), frozenset(report.value_keys)
    other, removed = frozenset(report.changed_keys) - values, frozenset(report.removed_keys)
    for t in drawing.tensors:
        tone = "ra" if t.key in added else "rs" if t.key in other else "r0"
        if t.key in values or (t.key in measured and tone == "r0"):
            tone = _tone(measured.get(t.key))
        yield Item(t.key, t.nbytes, tone, f"{described(t)}, {CHANGES[tone]}")
    for t in drawing.expected:
        if t.key in removed:
            yield Item(t.key, t.nbytes, "rd", f"{described(t)}, {CHANGES['rd']}")


def _tone(change: ChangeReport | None) -> str:
    if change is None or change.relative_l2 is None:
        return "rx"
    if not change.changed:
        return "r0"
    return next((tone for limit, tone in _LIMITS if change.relative_l2 < limit), "r5")


def shares(id_: str, tensors: Sequence[TensorReport | UnsavedReport]) -> Shares | None:
    """Build the table of bytes by dtype; None if there are no tensors."""
    tones = tones_of(tensors)
    total = sum(t.nbytes for t in tensors)
    if not tensors:
        return None
    by_dtype = {dtype: [t.nbytes for t in tensors if t.dtype == dtype] for dtype in tones}
    return Shares(
        id=id_,
        title="Size by dtype",
        shares=tuple(
            Share(dtype, tones[dtype], len(sizes), size(sum(sizes)),
                  round(100 * sum(sizes) / total, 1) if total else 0.0)
            for dtype, sizes in by_dtype.items()
        ),
    )  # fmt: skip

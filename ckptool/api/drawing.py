"""Report -> the same report with previews: reads the values of small masks and buffers."""

from collections.abc import Iterable
from itertools import chain, islice
from typing import Final

from msgspec.structs import replace

from ckptool import report
from ckptool.compare import Loading, Revision
from ckptool.grids import Preview
from ckptool.model import Checkpoint, ModuleState, State, TensorInfo
from ckptool.previews import MOST_READ, drawable, masks, preview, telling
from ckptool.reporting.drawing import R, Seen, drawn

MOST: Final = 48
"""Maximum number of previews in one report; those of repeated layers are often equal."""


def draw_checkpoints(
    found: report.InspectReport, checkpoints: Iterable[Checkpoint]
) -> report.InspectReport:
    """Add previews of mask-like tensors and of unsaved tensors of pickled modules."""
    several = len(found.checkpoints) > 1
    seen = [
        sides
        for one in checkpoints
        for sides in _of_file(one.states, f"{one.path}: " if several else "")
    ]
    return drawn(found, (), (), seen[:MOST])


def draw_module(found: R, module: ModuleState) -> R:
    """Add previews of the module's unsaved tensors and buffers."""
    seen = [
        (Seen(held.tensor, "module", held.preview),)
        for held in (*module.unsaved.values(), *module.saved.values())
        if held.preview is not None and not held.alias_of
    ]
    return drawn(found, (), (), seen[:MOST])


def draw_state(found: R, state: State) -> R:
    """Add the tensors of a state and previews of its masks, without a module."""
    return drawn(found, state.tensors.values(), (), _of_file([state]))


def draw_loading(found: R, loading: Loading) -> R:
    """Add the tensors of file and module, and previews of the buffers and unsaved ones of both."""
    module, in_file = loading.module, {**loading.state.unsaved, **loading.state.tensors}
    wanted = (*module.unsaved.values(), *module.saved.values())
    sides = [
        (*_side(in_file.get(held.key), "file"), *_given(held.tensor, held.preview))
        for held in islice((h for h in wanted if h.preview is not None), MOST)
    ]
    expected = (held.tensor for held in module.saved.values())
    return drawn(found, loading.state.tensors.values(), expected, sides)


def draw_revision(found: R, revision: Revision) -> R:
    """Add both files' tensors, and previews of masks that differ; weights get no preview."""
    old, new = revision.old_tensors, revision.new_tensors
    differing = ((old[key], new[key]) for key in revision.differing or () if drawable(new[key]))
    sides = ((*_side(a, "old"), *_side(b, "new")) for a, b in islice(differing, MOST_READ))
    masks_of = (pair for pair in sides if any(telling(one.preview) for one in pair))
    return drawn(found, new.values(), old.values(), islice(masks_of, MOST))


def _of_file(states: Iterable[State], prefix: str = "") -> list[tuple[Seen, ...]]:
    found = (
        replace(tensor, key=f"{prefix}{state.at}{'.' if state.at else ''}{tensor.key}")
        for state in states
        if state.role != "optimizer"
        for tensor in chain(state.unsaved.values(), state.tensors.values())
    )
    return [(Seen(tensor, "file", one),) for tensor, one in masks(found, MOST)]


def _side(tensor: TensorInfo | None, of: str) -> tuple[Seen, ...]:
    return () if tensor is None else _given(tensor, preview(tensor), of)


def _given(tensor: TensorInfo, one: Preview | None, of: str = "module") -> tuple[Seen, ...]:
    return () if one is None else (Seen(tensor, of, one),)

"""Check that a container can hold a draft: errors, or notes on entries left out as requested."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare.states import is_rank_part, list_entries_outside, list_placeholders
from ckptool.errors import PlanError, UnsupportedValueError
from ckptool.formats.safetensors.writer import SAFETENSORS_DTYPES
from ckptool.locations import Location
from ckptool.migration.plan.conversion import TreeChange
from ckptool.migration.plan.draft import Draft, PlannedTensor
from ckptool.model import Checkpoint, Container, ModuleInfo, StateDict, to_dotted_key
from ckptool.phrases import join_limited, pluralize, quote_code
from ckptool.values.elements import unreadable_reason

SAFETENSORS: Final = "safetensors"
TORCH: Final = "pth"
"""Names of the containers that a migration writes, as `--to` takes them."""
_MAX_LISTED: Final = 5
_MAX_LISTED_EXTRA: Final = 20
"""Top-level values that are named, of those that the result does not have."""
_REWRITTEN_CONTAINERS: Final = frozenset(
    {
        Container.TORCH_ZIP,
        Container.TORCH_LEGACY,
        Container.TORCH_TAR,
        Container.PICKLE,
        Container.DCP,
    }
)
"""Containers whose saved object is written again in a .pth, with another state_dict in it."""


def keeps_saved_object(draft: Draft, to: str) -> bool:
    """Return whether a result keeps what lies around the state_dict: other states and entries."""
    is_rewritten = draft.checkpoint.container in _REWRITTEN_CONTAINERS
    return to == TORCH and is_rewritten and not draft.is_extracted


def get_result_place(draft: Draft, to: str) -> str:
    """Return the place of the state_dict in the result: the source's, or the top level ("")."""
    return draft.state.at if keeps_saved_object(draft, to) else ""


def reject_packed_weights(checkpoint: Checkpoint) -> None:
    """Raise PlanError if weights are in packed objects: no file of plain tensors has them."""
    packed_keys = [key for state in checkpoint.states if state.is_packed for key in state.tensors]
    if packed_keys or checkpoint.opaque:
        names = join_limited(packed_keys, _MAX_LISTED, quote_code) or checkpoint.opaque[0].what
        raise PlanError(
            f"{checkpoint.path}: contains weights in packed objects, which a file of plain "
            f"tensors cannot store: {names}. Migrate the checkpoint from before quantizing, and "
            "quantize after loading"
        )


def reject_absent_values(
    path: Location, state: StateDict, module: ModuleInfo | None, *, takes_meta: bool = False
) -> None:
    """Raise PlanError if the file has placeholders or one rank's parts: it cannot give the rest.

    Empty tensors are no placeholders if the module has no elements there; without a module, or
    where it has no such key, as a wrapper's prefix may be before it, they are. With `takes_meta`, a
    tensor that was saved on meta stays one.
    """
    saved_tensors = module.saved_tensors if module is not None else {}
    placeholders = [
        key
        for key in list_placeholders(state)
        if key not in saved_tensors or saved_tensors[key].tensor.numel
    ]
    on_meta = [key for key, t in state.tensors.items() if t.is_on_meta and not takes_meta]
    rank_parts = [key for key, tensor in state.tensors.items() if is_rank_part(tensor)]
    for keys, problem in (
        (placeholders, "no elements for {}: placeholders, not weights (CK320)"),
        (on_meta, "no values for {}: saved on meta (CK327)"),
        (rank_parts, "only one rank's shard of {}: gather all first (CK604)"),
    ):
        if keys:
            names = join_limited(keys, _MAX_LISTED, quote_code)
            raise PlanError(
                f"{path}: {problem.format(names)}. ckptool cannot add what is not in the file"
            )


def check_container_limits(draft: Draft, to: str, *, drop_extra: bool) -> tuple[str, ...]:
    """Return notes on entries and attributes of the source that the result does not have.

    Raises:
        UnsupportedValueError: the container cannot hold a tensor (CK311).
        PlanError: the container cannot hold a non-tensor entry, or the draft is empty.
    """
    if not draft.items:
        raise PlanError(f"{draft.checkpoint.path}: nothing is left to write")
    reasons = {
        key: reason
        for key, item in draft.items.items()
        if (reason := _explain_unsupported(key, item, to))
    }
    if reasons:
        reasons_text = join_limited(
            reasons.items(), _MAX_LISTED, lambda item: f"`{item[0]}` ({item[1]})"
        )
        raise UnsupportedValueError(draft.checkpoint.path, to, reasons, reasons_text)
    extra = list_left_out(draft, to)
    if extra and not (drop_extra or draft.is_extracted):
        extra_text = join_limited(extra, _MAX_LISTED_EXTRA, _format_change)
        raise PlanError(
            f"{draft.checkpoint.path}: {to} cannot store {extra_text}: write a .pth, or drop it "
            "with --drop-extra"
            if keeps_saved_object(draft, TORCH)
            else f"{draft.checkpoint.path}: for a file of this kind only the state_dict can be "
            f"written, not {extra_text}: drop it with --drop-extra"
        )
    extra_text = join_limited(extra, _MAX_LISTED_EXTRA, _format_change)
    notes = [f"dropped, as requested: {extra_text}"] if extra else []
    on_meta = [key for key, item in draft.items.items() if item.tensor.is_on_meta]
    if on_meta:
        names = join_limited(on_meta, _MAX_LISTED, quote_code)
        notes.append(f"without values, as in the source: saved on meta (CK327): {names}")
    return (*notes, *_iter_attribute_notes(draft))


def list_left_out(draft: Draft, to: str) -> tuple[TreeChange, ...]:
    """Return the entries and other states of the source that the result in `to` does not have."""
    return tuple(_iter_unsupported_entries(draft, to))


def _format_change(change: TreeChange) -> str:
    return f"`{change.place}` ({change.before})"


def _explain_unsupported(key: str, item: PlannedTensor, to: str) -> str:
    """Return the reason why a tensor cannot be written; "" if it can."""
    if to == SAFETENSORS:
        if item.dtype not in SAFETENSORS_DTYPES:
            return item.dtype
        if key == "__metadata__" or not _is_text(key):
            return "its name"
    elif item.source_key or item.tensor.is_on_meta:
        return ""
    if item.tensor.layout not in {"strided", "chunked"}:
        return item.tensor.layout
    return unreadable_reason(item.tensor)


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _iter_unsupported_entries(draft: Draft, to: str) -> Iterator[TreeChange]:
    """Yield the non-tensor entries and other state_dicts that the result will not have."""
    if keeps_saved_object(draft, to):
        return
    is_rewritten = draft.checkpoint.container in _REWRITTEN_CONTAINERS
    kept_keys = draft.non_tensor_keys.values() if to == TORCH and is_rewritten else ()
    for key, text in draft.state.non_tensors.items():
        if key not in kept_keys:
            yield TreeChange(key, text)
    other_states = [state for state in draft.checkpoint.states if state.at != draft.state.at]
    for state in other_states:
        if state.at or len(state.tensors) > _MAX_LISTED:
            yield TreeChange(state.at or ".", pluralize(len(state.tensors), "tensor"))
        else:
            yield from (TreeChange(key, "a tensor") for key in state.tensors)
    places = [state.at for state in (draft.state, *other_states)]
    for entry in list_entries_outside(draft.checkpoint, places):
        if entry.at not in draft.state.non_tensors:
            yield TreeChange(entry.at, entry.text)


def _iter_attribute_notes(draft: Draft) -> Iterator[str]:
    unsaved_keys = [
        k for k in draft.state.unsaved_tensors if not {k, to_dotted_key(k)} & draft.items.keys()
    ]
    if unsaved_keys:
        names = join_limited(unsaved_keys, _MAX_LISTED, quote_code)
        yield (
            f"in the pickled module and not in its state_dict: {names}; "
            "ckptool migrate --inject KEY=attribute takes one along"
        )

"""Check that a container can hold a draft: errors, or notes on entries left out as requested."""

from collections.abc import Iterator
from typing import Final

from ckptool.errors import PlanError, UnsupportedValueError
from ckptool.formats.safetensors.writer import SAFETENSORS_DTYPES
from ckptool.migration.plan.draft import Draft, PlannedTensor, to_dotted_key
from ckptool.model import Container
from ckptool.phrases import join_limited, quote_code
from ckptool.tensors.elements import unreadable_reason

SAFETENSORS: Final = "safetensors"
TORCH: Final = "pth"
"""Names of the containers that a migration writes, as `--to` takes them."""
_MAX_LISTED: Final = 5


def check_container_limits(draft: Draft, to: str, *, drop_extra: bool) -> tuple[str, ...]:
    """Return notes on entries and attributes of the source that the result does not have.

    Raises:
        UnsupportedValueError: the container cannot hold a tensor (CK311).
        PlanError: the container cannot hold a non-tensor entry, or the draft is empty.
    """
    if not draft.items:
        raise PlanError(f"{draft.checkpoint.path}: nothing is left to be written")
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
    extra = list(_iter_unsupported_entries(draft, to))
    if extra and not drop_extra:
        raise PlanError(
            f"{draft.checkpoint.path}: {to} cannot hold {join_limited(extra, _MAX_LISTED)}: "
            "write a .pth, or leave that out with --drop-extra"
        )
    notes = [f"left out, as asked: {join_limited(extra, _MAX_LISTED)}"] if extra else []
    return (*notes, *_iter_attribute_notes(draft))


def _explain_unsupported(key: str, item: PlannedTensor, to: str) -> str:
    """Return the reason why a tensor cannot be written; "" if it can."""
    if to == SAFETENSORS:
        if item.dtype not in SAFETENSORS_DTYPES:
            return item.dtype
        if key == "__metadata__" or not _is_text(key):
            return "its name"
    elif item.source_key:
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


def _iter_unsupported_entries(draft: Draft, to: str) -> Iterator[str]:
    """Yield the non-tensor entries and other state_dicts that the container cannot hold."""
    if to != SAFETENSORS and draft.checkpoint.container is Container.TORCH_ZIP:
        return
    yield from (
        f"`{key}` ({draft.state.non_tensors[source_key]})"
        for key, source_key in draft.non_tensor_keys.items()
        if source_key in draft.state.non_tensors
    )
    for state in draft.checkpoint.states:
        if state.at != draft.state.at:
            yield f"`{state.at or '.'}` ({len(state.tensors)} tensors)"
    state_prefix = f"{draft.state.at}." if draft.state.at else ""
    for entry in draft.checkpoint.entries:
        if (
            not (state_prefix and entry.at.startswith(state_prefix))
            and entry.at not in draft.state.non_tensors
        ):
            yield f"`{entry.at}` ({entry.text})"


def _iter_attribute_notes(draft: Draft) -> Iterator[str]:
    unsaved_keys = [
        k for k in draft.state.unsaved_tensors if not {k, to_dotted_key(k)} & draft.items.keys()
    ]
    if unsaved_keys:
        names = join_limited(unsaved_keys, _MAX_LISTED, quote_code)
        yield (
            f"held by the pickled module and not in its state_dict: {names}; "
            "--inject KEY=attribute takes one along"
        )

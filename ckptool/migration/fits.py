"""Check that a container can hold a draft: errors, or notes on entries left out as requested."""

from collections.abc import Iterator

from ckptool.elements import obstacle
from ckptool.errors import PlanError, UnsupportedValueError
from ckptool.formats.safetensors_writer import CODES
from ckptool.migration.draft import Draft, Item, dotted
from ckptool.migration.write import SAFETENSORS
from ckptool.model import Container

_MOST = 5


def check_fits(draft: Draft, to: str, *, drop_extra: bool) -> tuple[str, ...]:
    """Return notes on entries and attributes of the source that the result does not have.

    Raises:
        UnsupportedValueError: the container cannot hold a tensor (CK311).
        PlanError: the container cannot hold a non-tensor entry, or the draft is empty.
    """
    if not draft.items:
        raise PlanError(f"{draft.checkpoint.path}: nothing is left to be written")
    reasons = {key: why for key, item in draft.items.items() if (why := _why(key, item, to))}
    if reasons:
        shown = _some([f"`{key}` ({why})" for key, why in reasons.items()])
        raise UnsupportedValueError(draft.checkpoint.path, to, reasons, shown)
    extra = list(_extra(draft, to))
    if extra and not drop_extra:
        raise PlanError(
            f"{draft.checkpoint.path}: {to} cannot hold {_some(extra)}: "
            "write a .pth, or leave that out with --drop-extra"
        )
    notes = [f"left out, as asked: {_some(extra)}"] if extra else []
    return (*notes, *_attributes(draft))


def _why(key: str, item: Item, to: str) -> str:
    """Return the reason why a tensor cannot be written; "" if it can."""
    if to == SAFETENSORS:
        if item.dtype not in CODES:
            return item.dtype
        if key == "__metadata__" or not _is_text(key):
            return "its name"
    elif item.origin:
        return ""
    if item.tensor.layout not in {"strided", "chunked"}:
        return item.tensor.layout
    return obstacle(item.tensor)


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _extra(draft: Draft, to: str) -> Iterator[str]:
    """Yield the non-tensor entries and other state_dicts that the container cannot hold."""
    if to != SAFETENSORS and draft.checkpoint.container is Container.TORCH_ZIP:
        return
    yield from (f"`{key}` ({draft.state.others[old]})" for key, old in draft.others.items())
    for state in draft.checkpoint.states:
        if state.at != draft.state.at:
            yield f"`{state.at or '.'}` ({len(state.tensors)} tensors)"
    inside = f"{draft.state.at}." if draft.state.at else ""
    for entry in draft.checkpoint.entries:
        if not (inside and entry.at.startswith(inside)) and entry.at not in draft.state.others:
            yield f"`{entry.at}` ({entry.text})"


def _attributes(draft: Draft) -> Iterator[str]:
    left = [k for k in draft.state.unsaved if not {k, dotted(k)} & draft.items.keys()]
    if left:
        names = _some([f"`{key}`" for key in left])
        yield (
            f"held by the pickled module and not in its state_dict: {names}; "
            "--inject KEY=attribute takes one along"
        )


def _some(found: list[str]) -> str:
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return f"{', '.join(found[:_MOST])}{more}"

"""Tied keys <-> record in safetensors' metadata: the file stores a tied tensor under one key."""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from ckptool.formats.safetensors.tie_metadata import parse_ties
from ckptool.migration.plan.draft import Draft, PlannedTensor
from ckptool.model import TensorInfo
from ckptool.phrases import join_limited, quote_code


def describe_left_out_names(draft: Draft) -> tuple[str, ...]:
    """Return a note on the tied names that a safetensors file of the draft leaves out."""
    if not draft.ties:
        return ()
    names = join_limited(
        draft.ties.items(),
        _MAX_LISTED,
        lambda tie: f"{quote_code(tie[0])} (as {quote_code(tie[1])})",
    )
    note = f"tied, and stored under one name in safetensors: {names}; "
    return (note + "load_state_dict() of the file reports the others as missing",)


_MAX_LISTED: Final = 3


def add_tied_tensors(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> dict[str, TensorInfo]:
    """Return `tensors` with the omitted tied keys of the record added."""
    all_tensors = dict(tensors)
    for name, kept_key in parse_ties(metadata, tensors).items():
        if name not in all_tensors:
            all_tensors[name] = replace(tensors[kept_key], key=name)
    return all_tensors


def restore_ties(draft: Draft) -> Draft:
    """Return the draft of a safetensors file with its omitted tied keys added."""
    tensors = add_tied_tensors(draft.state.tensors, draft.checkpoint.metadata)
    tied_items = {
        key: PlannedTensor(tensor) for key, tensor in tensors.items() if key not in draft.items
    }
    return replace(draft, items={**draft.items, **tied_items}) if tied_items else draft

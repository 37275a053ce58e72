"""Tied keys <-> record in safetensors' metadata: the file stores a tied tensor under one key."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from ckptool.formats.safetensors.tie_metadata import parse_ties
from ckptool.migration.plan.draft import Draft, PlannedTensor
from ckptool.model import TensorInfo, natural_sort_key
from ckptool.phrases import join_limited, quote_code


def split_ties(draft: Draft) -> tuple[dict[str, PlannedTensor], dict[str, str]]:
    """Return the items to write, and a mapping from each omitted tied key to the stored key."""
    items = draft.items
    # Nearly all storages have one tensor; hashing a storage's key is much faster than an identity.
    storage_keys = [_get_storage_key(item) for item in items.values()]
    if len(set(storage_keys)) == len(items):
        return dict(items), {}
    counts = Counter(storage_keys)
    keys_by_identity: dict[object, list[str]] = {}
    for key, storage_key in zip(items, storage_keys, strict=True):
        if counts[storage_key] > 1:
            keys_by_identity.setdefault(items[key].tie_identity, []).append(key)

    def rank_key(key: str) -> tuple[bool, tuple[object, ...]]:
        """Prefer the key that the source stores, so that fewer shards change."""
        return items[key].source_key != key, natural_sort_key(key)

    tied_groups = (keys for keys in keys_by_identity.values() if len(keys) > 1)
    sorted_groups = (sorted(keys, key=rank_key) for keys in tied_groups)
    kept_keys = {key: group[0] for group in sorted_groups for key in group[1:]}
    ties = {key: kept_keys[key] for key in sorted(kept_keys, key=rank_key)}
    return {key: item for key, item in items.items() if key not in ties}, ties


def _get_storage_key(item: PlannedTensor) -> object:
    storage = item.tensor.storage
    return storage.key if storage else id(item)


def describe_left_out_names(draft: Draft) -> tuple[str, ...]:
    """Return a note on the tied names that a safetensors file of the draft leaves out."""
    _, ties = split_ties(draft)
    if not ties:
        return ()
    names = join_limited(
        ties.items(), _MAX_LISTED, lambda tie: f"{quote_code(tie[0])} (as {quote_code(tie[1])})"
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

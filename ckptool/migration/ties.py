"""Tied keys <-> record in safetensors' metadata: the file stores a tied tensor under one key."""

import json
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from ckptool.migration.draft import Draft, Item
from ckptool.model import TensorInfo, natural

KEY: Final = "ckptool.ties"
"""Key in `__metadata__` of the mapping from omitted tied keys to the key that is stored."""


def split_ties(draft: Draft) -> tuple[dict[str, Item], dict[str, str]]:
    """Return the items to write, and a mapping from each omitted tied key to the stored key."""
    kept: dict[object, str] = {}
    ties: dict[str, str] = {}
    # Prefer the key that the source stores, so that fewer shards change.
    own = {key: item.origin == key for key, item in draft.items.items()}
    for key in sorted(draft.items, key=lambda key: (not own[key], natural(key))):
        first = kept.setdefault(draft.items[key].identity, key)
        if first != key:
            ties[key] = first
    return {key: item for key, item in draft.items.items() if key not in ties}, ties


def with_ties(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> dict[str, TensorInfo]:
    """Return `tensors` with the omitted tied keys of the record added."""
    found = dict(tensors)
    for name, kept in _record(metadata).items():
        if kept in tensors and name not in found:
            found[name] = replace(tensors[kept], key=name)
    return found


def with_ties_restored(draft: Draft) -> Draft:
    """Return the draft of a safetensors file with its omitted tied keys added."""
    tensors = with_ties(draft.state.tensors, draft.checkpoint.metadata)
    added = {key: Item(tensor) for key, tensor in tensors.items() if key not in draft.items}
    return replace(draft, items={**draft.items, **added}) if added else draft


def text(ties: Mapping[str, str]) -> str:
    """Return the tie record as JSON, the form stored in the metadata."""
    return json.dumps(dict(ties))


def _record(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        ties = json.loads(metadata.get(KEY, "{}"))
    except ValueError:
        return {}
    if not isinstance(ties, dict):
        return {}
    return {name: kept for name, kept in ties.items() if isinstance(kept, str)}

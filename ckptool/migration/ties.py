"""Names of one tensor <-> a record in safetensors' metadata: the file has room for one of them."""

import json
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from ckptool.migration.draft import Draft, Item
from ckptool.model import TensorInfo, natural

KEY: Final = "ckptool.ties"
"""Where `__metadata__` maps the names that were left out to the one that was kept."""


def split_ties(draft: Draft) -> tuple[dict[str, Item], dict[str, str]]:
    """Return the items to write, and for each one left out the key of its tie."""
    kept: dict[object, str] = {}
    ties: dict[str, str] = {}
    # The name that the source has stays, so that no more files change than must.
    own = {key: item.origin == key for key, item in draft.items.items()}
    for key in sorted(draft.items, key=lambda key: (not own[key], natural(key))):
        first = kept.setdefault(draft.items[key].identity, key)
        if first != key:
            ties[key] = first
    return {key: item for key, item in draft.items.items() if key not in ties}, ties


def with_ties(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> dict[str, TensorInfo]:
    """Return `tensors` with the names that the record has besides."""
    found = dict(tensors)
    for name, kept in _record(metadata).items():
        if kept in tensors and name not in found:
            found[name] = replace(tensors[kept], key=name)
    return found


def with_ties_restored(draft: Draft) -> Draft:
    """Return the draft of a safetensors file with the names that it left out."""
    tensors = with_ties(draft.state.tensors, draft.checkpoint.metadata)
    added = {key: Item(tensor) for key, tensor in tensors.items() if key not in draft.items}
    return replace(draft, items={**draft.items, **added}) if added else draft


def text(ties: Mapping[str, str]) -> str:
    """Return the record of ties as it stands in the metadata."""
    return json.dumps(dict(ties))


def _record(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        ties = json.loads(metadata.get(KEY, "{}"))
    except ValueError:
        return {}
    if not isinstance(ties, dict):
        return {}
    return {name: kept for name, kept in ties.items() if isinstance(kept, str)}

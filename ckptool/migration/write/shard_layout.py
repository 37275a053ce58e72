"""Draft -> ShardLayout: which tensor goes to which shard, and which shards are unchanged."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.formats.files.source import is_directory, open_source
from ckptool.formats.files.weight_names import (
    is_index_name,
    list_file_names,
    list_weights,
    name_in_format,
    name_index,
)
from ckptool.formats.sharded.writer import INDEX_NAME
from ckptool.locations import Location
from ckptool.migration.plan.container_limits import SAFETENSORS, TORCH
from ckptool.migration.plan.draft import Draft, PlannedTensor
from ckptool.migration.write.tensor_bytes import build_blob
from ckptool.model import Checkpoint, Container, StateDict, natural_sort_key


@dataclass(slots=True)
class OutputShard:
    """One shard of the result."""

    name: str
    items: dict[str, PlannedTensor] = field(default_factory=dict)
    source_file: Location | None = None
    """Identical file of the source, to be linked or copied; None if the shard is written."""


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """All shards of the result, and the name of the index file."""

    index: str
    """"" for one file of all weights, which has none."""
    shards: tuple[OutputShard, ...]
    ties: Mapping[str, str]
    metadata: Mapping[str, Any]
    """Metadata of the source's index."""


class ShardNames(Struct, frozen=True):
    """Names of the files of a sharded folder, as the Hugging Face libraries write and read them."""

    index: str
    shard: str
    """Format of a shard's name: number and count."""


_SHARD_NAMES: Final = {
    SAFETENSORS: ShardNames(INDEX_NAME, "model-{:05}-of-{:05}.safetensors"),
    TORCH: ShardNames("pytorch_model.bin.index.json", "pytorch_model-{:05}-of-{:05}.bin"),
}
_SUFFIXES: Final = {SAFETENSORS: ".safetensors", TORCH: ".bin"}
_SHARDED_CONTAINERS: Final = frozenset({Container.SHARDED_SAFETENSORS, Container.SHARDED_TORCH})


def plan_shards(draft: Draft, max_nbytes: int | None, to: str) -> ShardLayout:
    """Return the layout: the source's if it is sharded and `max_nbytes` is None, else a new one.

    Torch's shards have all names of a tied tensor, in one file; those of safetensors have one.
    """
    items, ties = draft.untied_items, draft.ties
    container = draft.checkpoint.container
    index = _find_index(draft) if container in _SHARDED_CONTAINERS else None
    metadata = _read_index_metadata(index)
    is_layout_kept = max_nbytes is None and to == SAFETENSORS and _have_own_names(draft.checkpoint)
    if is_layout_kept and container is Container.SHARDED_SAFETENSORS:
        shards = tuple(_keep_source_layout(draft, items))
        return ShardLayout(index.name if index else INDEX_NAME, shards, ties, metadata)
    whole_name = "" if max_nbytes or index else _name_whole_file(draft, to)
    if whole_name:
        whole_items = {**draft.items} if to == TORCH else items
        return ShardLayout("", (OutputShard(whole_name, {**whole_items}),), ties, metadata)
    names = _choose_shard_names(draft, to)
    if max_nbytes is None and container in _SHARDED_CONTAINERS:
        shards = tuple(_group_by_source_file(items, names))
    else:
        shards = tuple(_fill_shards(items, max_nbytes, names))
    if to == TORCH:
        for shard in shards:
            shard.items |= {name: draft.items[name] for name, k in ties.items() if k in shard.items}
        ties = {}
    return ShardLayout(names.index, shards, ties, metadata)


def _name_whole_file(draft: Draft, to: str) -> str:
    """Return the name of the file that the framework of the source looks for; "" if none does."""
    path = draft.checkpoint.path
    return "" if is_directory(path) else name_in_format(path.name, _SUFFIXES[to])


def _choose_shard_names(draft: Draft, to: str) -> ShardNames:
    """Return names that the framework of the source looks for, else those of transformers."""
    files = draft.checkpoint.files or (draft.checkpoint.path,)
    index = name_index(files[0].name, _SUFFIXES[to])
    if not index:
        return _SHARD_NAMES[to]
    stem = index.partition(".")[0]
    return ShardNames(index, f"{stem}-{{:05}}-of-{{:05}}{_SUFFIXES[to]}")


def build_shard_draft(draft: Draft, shard: OutputShard) -> Draft:
    """Return the draft of one shard."""
    tensors = {item.source_key: item.tensor for item in shard.items.values() if item.source_key}
    state = StateDict(draft.state.at, tensors, versions=draft.state.versions)
    checkpoint = replace(draft.checkpoint, states=(state,))
    return replace(
        draft,
        checkpoint=checkpoint,
        state=state,
        items=shard.items,
        non_tensor_keys={},
        is_extracted=True,
    )


def _have_own_names(checkpoint: Checkpoint) -> bool:
    """Whether the shards would have different names in one folder."""
    return len({path.name for path in checkpoint.files}) == len(checkpoint.files)


def _keep_source_layout(draft: Draft, items: Mapping[str, PlannedTensor]) -> Iterator[OutputShard]:
    """Yield shards with every tensor in its source file; new tensors join the nearest key."""
    source_files = {path.name: path for path in draft.checkpoint.files}
    shard_names = {
        key: shard_name
        for key, item in draft.state.tensors.items()
        if (shard_name := _get_shard_name(item))
    }
    shards = {name: OutputShard(name) for name in source_files}
    for key, item in items.items():
        shard_name = (
            shard_names.get(item.source_key)
            or _find_nearest_shard(key, shard_names)
            or next(iter(source_files))
        )
        shards[shard_name].items[key] = item
    for name, shard in shards.items():
        source_keys = {key for key, shard_name in shard_names.items() if shard_name == name}
        is_unchanged = all(item.source_key == key for key, item in shard.items.items())
        if is_unchanged and shard.items.keys() == source_keys:
            shard.source_file = source_files[name]
        if shard.items:
            yield shard


def _get_shard_name(tensor: Any) -> str:
    storage = tensor.storage
    return storage.span.path.name if storage is not None and storage.span is not None else ""


def _find_nearest_shard(key: str, shard_names: Mapping[str, str]) -> str:
    """Return the shard of the key that shares the most leading segments with `key`."""
    segments = key.split(".")

    def count_common_segments(candidate: str) -> int:
        pairs = zip(segments, candidate.split("."), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    nearest_key = max(shard_names, key=count_common_segments, default=None)
    return shard_names[nearest_key] if nearest_key is not None else ""


def _fill_shards(
    items: Mapping[str, PlannedTensor], max_nbytes: int | None, names: ShardNames
) -> list[OutputShard]:
    """Fill shards up to `max_nbytes` bytes (None: one shard), in natural key order."""
    shards, remaining_nbytes = [OutputShard("")], max_nbytes or 0
    for key in sorted(items, key=natural_sort_key):
        nbytes = build_blob(items[key]).nbytes
        if max_nbytes is not None and shards[-1].items and nbytes > remaining_nbytes:
            shards.append(OutputShard(""))
            remaining_nbytes = max_nbytes
        shards[-1].items[key] = items[key]
        remaining_nbytes -= nbytes
    return _name_shards(shards, names)


def _group_by_source_file(
    items: Mapping[str, PlannedTensor], names: ShardNames
) -> list[OutputShard]:
    """Return one shard for each file of the source, in natural order of the files' names."""
    groups: dict[str, OutputShard] = {}
    for key in sorted(items, key=natural_sort_key):
        storage = items[key].tensor.storage
        file = str(storage.span.path) if storage is not None and storage.span is not None else ""
        groups.setdefault(file, OutputShard("")).items[key] = items[key]
    return _name_shards([groups[name] for name in sorted(groups, key=natural_sort_key)], names)


def _name_shards(shards: list[OutputShard], names: ShardNames) -> list[OutputShard]:
    for number, shard in enumerate(shards, 1):
        shard.name = names.shard.format(number, len(shards))
    return shards


def _find_index(draft: Draft) -> Location | None:
    path = draft.checkpoint.path
    if not is_directory(path):
        return path
    names = filter(is_index_name, list_weights(list_file_names(path)))
    return next((path / name for name in names), None)


def _read_index_metadata(index: Location | None) -> dict[str, Any]:
    """Return the metadata of an index file; its JSON was validated when it was opened."""
    if index is None:
        return {}
    with open_source(index) as source:
        metadata = json.loads(source.read_head(source.nbytes)).get("metadata")
    return metadata if isinstance(metadata, dict) else {}

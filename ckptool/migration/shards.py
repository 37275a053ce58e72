"""Draft -> ShardLayout: which tensor goes to which shard, and which shards are unchanged."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any

from msgspec.structs import replace

from ckptool.formats.files import is_directory, names_in, open_source
from ckptool.formats.sharded_writer import INDEX
from ckptool.locations import Location
from ckptool.migration.draft import Draft, Item
from ckptool.migration.execute import blob
from ckptool.migration.ties import split_ties
from ckptool.model import Container, State, natural


@dataclass(slots=True)
class Shard:
    """One shard of the result."""

    name: str
    items: dict[str, Item] = field(default_factory=dict)
    kept: Location | None = None
    """Identical file of the source, to be linked or copied; None if the shard is written."""


@dataclass(frozen=True, slots=True)
class Layout:
    """All shards of the result, and the name of the index file."""

    index: str
    shards: tuple[Shard, ...]
    ties: Mapping[str, str]
    metadata: Mapping[str, Any]
    """Metadata of the source's index."""


def lay_out(draft: Draft, most: int | None) -> Layout:
    """Return the layout: the source's if it is sharded and `max_nbytes` is None, else a new one."""
    items, tied = split_ties(draft)
    sharded = draft.checkpoint.container is Container.SHARDED_SAFETENSORS
    if most is None and sharded:
        shards = tuple(_as_before(draft, items))
        index = _index_of(draft)
        return Layout(index.name if index else INDEX, shards, tied, _index_metadata(index))
    index = _index_of(draft) if sharded else None
    return Layout(INDEX, tuple(_filled(items, most)), tied, _index_metadata(index))


def part(draft: Draft, shard: Shard) -> Draft:
    """Return the draft of one shard."""
    tensors = {i.origin: i.tensor for i in shard.items.values() if i.origin}
    state = State(draft.state.at, tensors, versions=draft.state.versions)
    checkpoint = replace(draft.checkpoint, states=(state,))
    return replace(draft, checkpoint=checkpoint, state=state, items=shard.items, others={})


def _as_before(draft: Draft, items: Mapping[str, Item]) -> Iterator[Shard]:
    """Yield shards with every tensor in its source file; new tensors join the nearest key."""
    before = {path.name: path for path in draft.checkpoint.files}
    homes = {key: home for key, item in draft.state.tensors.items() if (home := _home(item))}
    shards = {name: Shard(name) for name in before}
    for key, item in items.items():
        home = homes.get(item.origin) or _nearest(key, homes) or next(iter(before))
        shards[home].items[key] = item
    for name, shard in shards.items():
        whole = {key for key, home in homes.items() if home == name}
        same = all(item.origin == key for key, item in shard.items.items())
        if same and shard.items.keys() == whole:
            shard.kept = before[name]
        if shard.items:
            yield shard


def _home(tensor: Any) -> str:
    storage = tensor.storage
    return storage.span.path.name if storage is not None and storage.span is not None else ""


def _nearest(key: str, homes: Mapping[str, str]) -> str:
    """Return the shard of the key that shares the most leading segments with `key`."""
    wanted = key.split(".")

    def alike(other: str) -> int:
        pairs = zip(wanted, other.split("."), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    best = max(homes, key=alike, default=None)
    return homes[best] if best is not None else ""


def _filled(items: Mapping[str, Item], most: int | None) -> list[Shard]:
    """Fill shards up to `max_nbytes` bytes (None: one shard), in natural key order."""
    shards, room = [Shard("")], most or 0
    for key in sorted(items, key=natural):
        nbytes = blob(items[key]).nbytes
        if most is not None and shards[-1].items and nbytes > room:
            shards.append(Shard(""))
            room = most
        shards[-1].items[key] = items[key]
        room -= nbytes
    for number, shard in enumerate(shards, 1):
        shard.name = f"model-{number:05}-of-{len(shards):05}.safetensors"
    return shards


def _index_of(draft: Draft) -> Location | None:
    path = draft.checkpoint.path
    if not is_directory(path):
        return path
    found = (path / name for name in names_in(path) if fnmatchcase(name, "*.index*.json"))
    return next(found, None)


def _index_metadata(index: Location | None) -> dict[str, Any]:
    """Return the metadata of an index file; its JSON was validated when it was opened."""
    if index is None:
        return {}
    with open_source(index) as source:
        found = json.loads(source.head(source.nbytes)).get("metadata")
    return found if isinstance(found, dict) else {}

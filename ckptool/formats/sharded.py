"""Index of shards -> Checkpoint: tensors of all shards, and mismatches with the weight_map."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError, ReadError
from ckptool.formats.files import Source, exists, names_in, open_source
from ckptool.formats.limits import Limits
from ckptool.formats.pointers import foreign
from ckptool.formats.strict_json import JsonReader, named, quoted, shown
from ckptool.locations import Location, RemotePath
from ckptool.model import Checkpoint, Container, Fault, Skipped, State, TensorInfo

OpenShard = Callable[[Location, Limits], Checkpoint]
"""Opens one shard file (never an index) and describes it."""

_HEAD_BYTES: Final = 1 << 16
_INDEX: Final = re.compile(r"(.+)\.(safetensors|bin|pth?)\.index\.json")
_SEPARATORS: Final = frozenset("/\\\0")


def matches(source: Source) -> bool:
    """Whether it is JSON with a weight_map."""
    head = source.head(_HEAD_BYTES)
    return head.lstrip()[:1] == b"{" and b'"weight_map"' in head


def read(index: Location, limits: Limits, open_shard: OpenShard) -> Checkpoint:
    """Describe the checkpoint whose shards the index file names.

    Missing shards and tensors absent from their shard become ContainerIssues of the result.

    Raises:
        ReadError: the index or a shard cannot be read, or all shards are missing.
    """
    with open_source(index) as source:
        nbytes = source.nbytes
        weight_map, metadata = _document(source, limits)
    _check_names(index, set(weight_map.values()))
    names = sorted(set(weight_map.values()))
    beside, skipped = _beside(index)
    shards = _opened(index, names, limits, open_shard)
    if names and not shards:
        raise ReadError(
            index, f"none of its {len(names)} shards is beside it, as {quoted(names[0])}"
        )
    return Checkpoint(
        path=index,
        container=_container(shards.values()),
        nbytes=nbytes + sum(shard.nbytes for shard in shards.values()),
        states=tuple(_states(shards, weight_map)),
        entries=tuple(entry for shard in shards.values() for entry in shard.entries),
        globals=tuple(dict.fromkeys(name for shard in shards.values() for name in shard.globals)),
        metadata=metadata | _common_metadata(shards.values()),
        damage=next((f"{name}: {s.damage}" for name, s in shards.items() if s.damage), ""),
        skipped=tuple(
            dict.fromkeys((*skipped, *(skip for s in shards.values() for skip in s.skipped)))
        ),
        files=tuple(index.parent / name for name in shards),
        faults=tuple(_faults(index, weight_map, shards, beside)),
    )


def _document(source: Source, limits: Limits) -> tuple[dict[str, str], dict[str, str]]:
    """Return the weight_map, and the index metadata with values converted to text."""
    index = JsonReader(source.path, source.read, source.nbytes, limits, "the index")
    weight_map: dict[str, str] | None = None
    metadata: dict[str, str] = {}
    if index.peek() != "{":
        reason = foreign(source.head(_HEAD_BYTES)) or "is an index, and not a JSON object"
        raise CorruptCheckpointError(source.path, reason)
    for key in index.members():
        if key == "weight_map":
            weight_map = _weight_map(source.path, index, limits)
        elif key == "metadata":
            metadata = _metadata(source.path, index.value(limits.metadata_bytes))
        else:
            index.value(limits.metadata_bytes)
    if rest := index.rest(" \t\r\n"):
        raise CorruptCheckpointError(source.path, f"{quoted(rest)} follows the index's JSON")
    if weight_map is None:
        raise CorruptCheckpointError(source.path, "weight_map is missing")
    return weight_map, metadata


def _weight_map(path: Location, index: JsonReader, limits: Limits) -> dict[str, str]:
    if index.peek() != "{":
        value = named(index.value(limits.metadata_bytes))
        raise CorruptCheckpointError(path, f"weight_map is {value}, not an object")
    weight_map = {}
    for key in index.members():
        name = index.value(limits.entry_bytes)
        if not isinstance(name, str):
            reason = f"weight_map has {named(name)} under {quoted(key)}, not a file's name"
            raise CorruptCheckpointError(path, reason)
        weight_map[key] = name
    return weight_map


def _metadata(path: Location, value: object) -> dict[str, str]:
    if value is not None and not isinstance(value, dict):
        raise CorruptCheckpointError(path, f"its metadata is {named(value)}, not an object")
    return {k: v if isinstance(v, str) else shown(v) for k, v in (value or {}).items()}


def _check_names(index: Location, names: Iterable[str]) -> None:
    for name in names:
        if name in {"", ".", ".."} or _SEPARATORS & set(name) or not name.isprintable():
            reason = (
                f"weight_map names the shard {quoted(name)}: only plain file names are followed"
            )
            raise CorruptCheckpointError(index, reason)


def _common_metadata(shards: Iterable[Checkpoint]) -> dict[str, str]:
    """Return the metadata items that all shards have in common."""
    first, *others = [shard.metadata.items() for shard in shards] or [{}.items()]
    return dict(item for item in first if all(item in other for other in others))


def _beside(index: Location) -> tuple[Sequence[str], Sequence[Skipped]]:
    """Return the names in the index's folder; if it cannot be listed, () and a Skipped entry."""
    try:
        return names_in(index.parent), ()
    except ReadError as error:
        return (), [Skipped("files that the index does not name", error.reason)]


def _opened(
    index: Location, names: Sequence[str], limits: Limits, open_shard: OpenShard
) -> dict[str, Checkpoint]:
    """Describe the shards that exist, remote ones concurrently; keyed by file name."""

    def opened(name: str) -> Checkpoint | None:
        path = index.parent / name
        return open_shard(path, limits) if exists(path) else None

    if isinstance(index, RemotePath):
        from ckptool.formats.remote import together

        found = together(opened, names)
    else:
        found = list(map(opened, names))
    pairs = zip(names, found, strict=True)
    return {name: shard for name, shard in pairs if shard is not None}


def _is_link(path: Location) -> bool:
    return isinstance(path, Path) and path.is_symlink()


def _container(shards: Iterable[Checkpoint]) -> Container:
    if all(shard.container is Container.SAFETENSORS for shard in shards):
        return Container.SHARDED_SAFETENSORS
    return Container.SHARDED_TORCH


def _states(shards: Mapping[str, Checkpoint], weight_map: Mapping[str, str]) -> Iterator[State]:
    places = sorted({state.at for shard in shards.values() for state in shard.states} or {""})
    for at in places:
        found = [(name, s) for name, shard in shards.items() for s in shard.states if s.at == at]
        yield State(
            at=at,
            tensors=_tensors(found, weight_map),
            role=found[0][1].role if found else "state_dict",
            versions=_versions([state.versions for _, state in found]),
            others=dict(item for _, state in found for item in state.others.items()),
            unsaved=dict(item for _, state in found for item in state.unsaved.items()),
            modules=dict(item for _, state in found for item in state.modules.items()),
        )


def _tensors(
    found: Iterable[tuple[str, State]], weight_map: Mapping[str, str]
) -> dict[str, TensorInfo]:
    """Merge the tensors of several shards; for duplicate keys, the weight_map decides."""
    tensors: dict[str, TensorInfo] = {}
    for name, state in found:
        for key, tensor in state.tensors.items():
            if key not in tensors or weight_map.get(key) == name:
                tensors[key] = _owned(tensor, name)
    return tensors


def _owned(tensor: TensorInfo, shard: str) -> TensorInfo:
    """Prefix storage keys with the shard name, so that they are unique across shards."""
    storage = tensor.storage
    if storage is not None and storage.span is None:
        return replace(tensor, storage=replace(storage, key=f"{shard}:{storage.key}"))
    if tensor.parts:
        parts = (replace(part, tensor=_owned(part.tensor, shard)) for part in tensor.parts)
        return replace(tensor, parts=tuple(parts))
    return tensor


def _versions(found: Iterable[Mapping[str, int | None] | None]) -> dict[str, int | None] | None:
    known = [versions for versions in found if versions is not None]
    return dict(item for versions in known for item in versions.items()) if known else None


def _faults(
    index: Location,
    weight_map: Mapping[str, str],
    shards: Mapping[str, Checkpoint],
    beside: Sequence[str],
) -> Iterator[Fault]:
    for name, count in sorted(Counter(weight_map.values()).items()):
        if name not in shards:
            gone = "is a link to nothing" if _is_link(index.parent / name) else "is not there"
            yield Fault("CK601", name, {"fault": gone, "tensors": str(count)})
    held = {name: _keys(shard) for name, shard in shards.items()}
    for key, name in weight_map.items():
        if name in held and key not in held[name]:
            yield Fault("CK602", key, {"shard": name})
    yield from _strays(weight_map, held)
    for name in _stray_files(index, set(weight_map.values()), beside):
        yield Fault("CK603", name, {"what": "the shard"})
    for name, shard in shards.items():
        for fault in shard.faults:
            yield replace(fault, facts={**fault.facts, "shard": name})


def _keys(shard: Checkpoint) -> set[str]:
    roots = [state for state in shard.states if state.at == ""]
    return {key for state in roots for key in (*state.tensors, *state.others)}


def _strays(weight_map: Mapping[str, str], held: Mapping[str, set[str]]) -> Iterator[Fault]:
    for name, keys in held.items():
        for key in sorted(key for key in keys if weight_map.get(key) != name):
            meant = weight_map.get(key)
            if meant is None:
                yield Fault("CK603", key, {"what": "the tensor", "shard": name})
            elif key in held.get(meant, ()):
                yield Fault("CK603", key, {"what": "a second tensor", "shard": name})


def _stray_files(index: Location, names: set[str], beside: Sequence[str]) -> list[str]:
    """Return files named like shards of this index that are not in its weight_map."""
    index_name = _INDEX.fullmatch(index.name)
    if index_name is None:
        return []
    stem, suffix = map(re.escape, index_name.groups())
    shard = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
    return sorted(name for name in beside if shard.fullmatch(name) and name not in names)

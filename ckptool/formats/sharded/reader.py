"""Index of shards -> Checkpoint: tensors of all shards, and mismatches with the weight_map."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from posixpath import normpath
from typing import Final

from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError, ReadError
from ckptool.formats.contents.collector import ContentCollector, fingerprint_metadata
from ckptool.formats.files.source import ByteSource, list_names, open_source, path_exists
from ckptool.formats.files.weight_names import is_dangling, list_preferred_files
from ckptool.formats.limits import Limits
from ckptool.formats.sharded.sibling_files import list_unread_siblings
from ckptool.formats.strict_json import JsonReader, describe_type, format_value, quote_text
from ckptool.formats.unrecognized import identify_other_format
from ckptool.locations import Location, RemotePath
from ckptool.model import (
    Checkpoint,
    Container,
    ContainerIssue,
    Content,
    IssueKind,
    Skipped,
    StateDict,
    StorageInfo,
    TensorInfo,
)
from ckptool.phrases import cut_middle, quote_code

OpenShard = Callable[[Location, Limits], Checkpoint]
"""Opens one shard file (never an index) and describes it."""

INDEX_PLACE: Final = "metadata.{name} of the index"
"""Place of an entry of an index's metadata, in the contents of the checkpoint."""
_HEAD_BYTES: Final = 1 << 16
_INDEX_NAME: Final = re.compile(r"(.+)\.(safetensors|bin|pth?)\.index\.json")


def matches(source: ByteSource) -> bool:
    """Whether it is JSON with a weight_map."""
    head = source.read_head(_HEAD_BYTES)
    return head.lstrip()[:1] == b"{" and b'"weight_map"' in head


def read(index: Location, limits: Limits, open_shard: OpenShard) -> Checkpoint:
    """Describe the checkpoint whose shards the index file names.

    Missing shards and tensors absent from their shard become ContainerIssues of the result.

    Raises:
        ReadError: the index or a shard cannot be read, or all shards are missing.
    """
    with open_source(index) as source:
        nbytes = source.nbytes
        weight_map, metadata = _read_index(source, limits)
    names = sorted(set(weight_map.values()))
    sibling_names, skipped = _list_siblings(index)
    shards = _open_shards(index, names, limits, open_shard)
    if names and not shards:
        raise ReadError(
            index,
            f"none of its {len(names)} shards is in the same folder, such as "
            f"{quote_text(names[0])}",
        )
    reported_names = _find_read_names(index, names, sibling_names)
    return Checkpoint(
        path=index,
        container=_choose_container(shards.values()),
        nbytes=nbytes + sum(shard.nbytes for shard in shards.values()),
        states=tuple(_merge_states(shards, weight_map)),
        entries=tuple(entry for shard in shards.values() for entry in shard.entries),
        globals=tuple(dict.fromkeys(name for shard in shards.values() for name in shard.globals)),
        metadata=metadata | _intersect_metadata(shards.values()),
        damage=_find_first(shards, lambda shard: shard.damage),
        unread=tuple(part for shard in shards.values() for part in shard.unread),
        skipped=tuple(
            dict.fromkeys(
                (
                    *skipped,
                    *list_unread_siblings(sibling_names, reported_names, "index", index.name),
                    *(skipped_item for shard in shards.values() for skipped_item in shard.skipped),
                )
            )
        ),
        files=tuple(index.parent / name for name in shards),
        shard_containers={name: shard.container for name, shard in shards.items()},
        faults=tuple(_iter_issues(index, weight_map, shards, sibling_names)),
        load_refusal=_find_first(shards, lambda shard: shard.load_refusal),
        opaque=tuple(part for shard in shards.values() for part in shard.opaque),
        contents=_merge_contents(metadata, shards) if limits.contents else {},
        weights_only_refusal=_find_first(shards, lambda shard: shard.weights_only_refusal),
        byte_storages=_merge_byte_storages(shards),
    )


def _find_first(shards: Mapping[str, Checkpoint], get_reason: Callable[[Checkpoint], str]) -> str:
    """Return "NAME: reason" of the first shard for which there is a reason; "" without one."""
    reasons = ((name, get_reason(shard)) for name, shard in shards.items())
    return next((f"{name}: {reason}" for name, reason in reasons if reason), "")


def _merge_byte_storages(parts: Mapping[str, Checkpoint]) -> dict[str, StorageInfo]:
    """Return the storages of bytes of several checkpoints, each place behind its part's name."""
    return {
        f"{name}: {place}": storage
        for name, part in parts.items()
        for place, storage in part.byte_storages.items()
    }


def list_shard_names(index: Location, limits: Limits) -> set[str]:
    """Return the names of the shards in an index; none of one that cannot be read."""
    try:
        with open_source(index) as source:
            weight_map, _ = _read_index(source, limits)
    except ReadError:
        return set()
    return set(weight_map.values())


def _read_index(source: ByteSource, limits: Limits) -> tuple[dict[str, str], dict[str, str]]:
    """Return the weight_map, and the index metadata with values converted to text.

    A shard's name may have folders in front: "part/model-00001-of-00002.safetensors".
    """
    index = JsonReader(source.path, source.read, source.nbytes, limits, "the index")
    weight_map: dict[str, str] | None = None
    metadata: dict[str, str] = {}
    if index.peek_character() != "{":
        reason = (
            identify_other_format(source.read_head(_HEAD_BYTES))
            or "is an index but not a JSON object"
        )
        raise CorruptCheckpointError(source.path, reason)
    for key in index.iter_keys():
        if key == "weight_map":
            weight_map = _read_weight_map(source.path, index, limits)
        elif key == "metadata":
            metadata = _convert_metadata(source.path, index.read_value(limits.metadata_bytes))
        else:
            index.read_value(limits.metadata_bytes)
    if trailing_text := index.read_remaining(" \t\r\n"):
        raise CorruptCheckpointError(
            source.path, f"{quote_text(trailing_text)} follows the index's JSON"
        )
    if weight_map is None:
        raise CorruptCheckpointError(source.path, "weight_map is missing")
    names = set(weight_map.values())
    _check_names(source.path, names)
    normal_names = {name: normpath(name) for name in names}
    return {key: normal_names[name] for key, name in weight_map.items()}, metadata


def _read_weight_map(path: Location, index: JsonReader, limits: Limits) -> dict[str, str]:
    if index.peek_character() != "{":
        value = describe_type(index.read_value(limits.metadata_bytes))
        raise CorruptCheckpointError(path, f"weight_map is {value}, not an object")
    weight_map = {}
    for key in index.iter_keys():
        name = index.read_value(limits.entry_bytes)
        if not isinstance(name, str):
            reason = (
                f"weight_map has {describe_type(name)} under {quote_text(key)}, not a file's name"
            )
            raise CorruptCheckpointError(path, reason)
        weight_map[key] = name
    return weight_map


def _convert_metadata(path: Location, value: object) -> dict[str, str]:
    if value is not None and not isinstance(value, dict):
        raise CorruptCheckpointError(path, f"its metadata is {describe_type(value)}, not an object")
    return {k: v if isinstance(v, str) else format_value(v) for k, v in (value or {}).items()}


def _check_names(index: Location, names: Iterable[str]) -> None:
    """Refuse names that are none, and files outside of the folder, though transformers reads them.

    A folder that was downloaded does not choose which other files of this machine are read.

    Raises:
        CorruptCheckpointError: there is such a name.
    """
    for name in names:
        steps = name.split("/")
        if not name.isprintable() or "\\" in name or steps[-1] in {"", ".", ".."}:
            reason = "is not the name of a file"
        elif steps[0] == "" or ".." in steps:
            reason = (
                "is absolute or has `..`: transformers would read it, but a folder does not "
                "choose which files outside of it are read here"
            )
        else:
            continue
        raise CorruptCheckpointError(
            index, f"weight_map refers to the shard {quote_text(name)}, which {reason}"
        )


def _intersect_metadata(shards: Iterable[Checkpoint]) -> dict[str, str]:
    """Return the metadata items that all shards have in common."""
    first_items, *remaining_items = [shard.metadata.items() for shard in shards] or [{}.items()]
    return dict(
        item for item in first_items if all(item in shard_items for shard_items in remaining_items)
    )


def _merge_contents(
    index_metadata: Mapping[str, str], shards: Mapping[str, Checkpoint]
) -> dict[str, Content]:
    """Return the contents of index and shards: one for what all shards have alike at a place.

    Where the tensors are divided among other shards, they are the same all the same.
    """
    collector = ContentCollector()
    for place, fingerprint in fingerprint_metadata(index_metadata, INDEX_PLACE).items():
        collector.add(place, fingerprint)
    contents_by_place: dict[str, dict[Content, None]] = {}
    for shard in shards.values():
        for place, content in shard.contents.items():
            contents_by_place.setdefault(place, {})[content] = None
    for place, contents in contents_by_place.items():
        fingerprints = sorted(content for content in contents if type(content) is str)
        tensors = [content for content in contents if type(content) is not str]
        for content in (*fingerprints, *tensors):
            collector.add(place, content)
    return collector.contents


def _list_siblings(index: Location) -> tuple[Sequence[str], Sequence[Skipped]]:
    """Return the names in the index's folder; if it cannot be listed, () and a Skipped entry."""
    try:
        return list_names(index.parent), ()
    except ReadError as error:
        return (), [Skipped("files that are not in the index", error.reason)]


def _open_shards(
    index: Location, names: Sequence[str], limits: Limits, open_shard: OpenShard
) -> dict[str, Checkpoint]:
    """Describe the shards that exist, remote ones concurrently; keyed by file name."""

    def open_if_exists(name: str) -> Checkpoint | None:
        path = index.parent / name
        return open_shard(path, limits) if path_exists(path) else None

    if isinstance(index, RemotePath):
        from ckptool.formats.files.remote import map_concurrently

        checkpoints = map_concurrently(open_if_exists, names)
    else:
        checkpoints = list(map(open_if_exists, names))
    pairs = zip(names, checkpoints, strict=True)
    return {name: shard for name, shard in pairs if shard is not None}


def _choose_container(shards: Iterable[Checkpoint]) -> Container:
    if all(shard.container is Container.SAFETENSORS for shard in shards):
        return Container.SHARDED_SAFETENSORS
    return Container.SHARDED_TORCH


def _merge_states(
    shards: Mapping[str, Checkpoint], weight_map: Mapping[str, str]
) -> Iterator[StateDict]:
    state_paths = sorted({state.at for shard in shards.values() for state in shard.states} or {""})
    for at in state_paths:
        shard_states = [
            (name, state)
            for name, shard in shards.items()
            for state in shard.states
            if state.at == at
        ]
        yield StateDict(
            at=at,
            tensors=_merge_tensors(shard_states, weight_map),
            role=shard_states[0][1].role if shard_states else "state_dict",
            versions=_merge_versions([state.versions for _, state in shard_states]),
            module_metadata=dict(
                item for _, state in shard_states for item in state.module_metadata.items()
            ),
            non_tensors=dict(
                item for _, state in shard_states for item in state.non_tensors.items()
            ),
            container_keys=tuple(
                dict.fromkeys(key for _, state in shard_states for key in state.container_keys)
            ),
            unsaved_tensors=dict(
                item for _, state in shard_states for item in state.unsaved_tensors.items()
            ),
            modules=dict(item for _, state in shard_states for item in state.modules.items()),
        )


def _merge_tensors(
    shard_states: Iterable[tuple[str, StateDict]], weight_map: Mapping[str, str]
) -> dict[str, TensorInfo]:
    """Merge the tensors of several shards; for duplicate keys, the weight_map decides.

    If the index names none of the shards that have a key, the last one counts, as in
    from_pretrained().
    """
    tensors: dict[str, TensorInfo] = {}
    indexed_keys: set[str] = set()
    for name, state in shard_states:
        for key, tensor in state.tensors.items():
            if key not in indexed_keys:
                tensors[key] = _qualify_storages(tensor, name)
                if weight_map.get(key) == name:
                    indexed_keys.add(key)
    return tensors


def _qualify_storages(tensor: TensorInfo, shard: str) -> TensorInfo:
    """Prefix storage keys with the shard name, so that they are unique across shards."""
    storage = tensor.storage
    if storage is not None and storage.span is None:
        return replace(tensor, storage=replace(storage, key=f"{shard}:{storage.key}"))
    if tensor.parts:
        parts = (
            replace(part, tensor=_qualify_storages(part.tensor, shard)) for part in tensor.parts
        )
        return replace(tensor, parts=tuple(parts))
    return tensor


def _merge_versions(
    shard_versions: Iterable[Mapping[str, int | None] | None],
) -> dict[str, int | None] | None:
    known_versions = [versions for versions in shard_versions if versions is not None]
    return (
        dict(item for versions in known_versions for item in versions.items())
        if known_versions
        else None
    )


def _iter_issues(
    index: Location,
    weight_map: Mapping[str, str],
    shards: Mapping[str, Checkpoint],
    sibling_names: Sequence[str],
) -> Iterator[ContainerIssue]:
    for name, count in sorted(Counter(weight_map.values()).items()):
        if name not in shards:
            description = (
                "is a dangling link" if is_dangling(index.parent / name) else "does not exist"
            )
            yield ContainerIssue(
                IssueKind.MISSING_SHARD, name, {"fault": description, "tensors": str(count)}
            )
    keys_by_shard = {name: _collect_keys(shard) for name, shard in shards.items()}
    yield from _iter_absent_tensors(weight_map, keys_by_shard)
    yield from _iter_stray_tensors(weight_map, keys_by_shard)
    for name in list_preferred_files(index.name, sibling_names):
        if set(weight_map.values()) != {name}:
            yield build_precedence_issue(index.name, name)
    for name in _find_stray_files(index, set(weight_map.values()), sibling_names):
        yield ContainerIssue(IssueKind.UNINDEXED, name, {"what": "the shard"})
    for name, shard in shards.items():
        for issue in shard.faults:
            yield replace(issue, facts={**issue.facts, "shard": name})


def _collect_keys(shard: Checkpoint) -> set[str]:
    roots = [state for state in shard.states if state.at == ""]
    return {key for state in roots for key in (*state.tensors, *state.non_tensors)}


def _iter_absent_tensors(
    weight_map: Mapping[str, str], keys_by_shard: Mapping[str, set[str]]
) -> Iterator[ContainerIssue]:
    """Yield the tensors that are not in the shard in which the index says they are."""
    places = {key: name for name, keys in keys_by_shard.items() for key in keys}
    for key, name in weight_map.items():
        if name not in keys_by_shard or key in keys_by_shard[name]:
            continue
        if key in places:
            facts = {"shard": name, "found": places[key]}
            yield ContainerIssue(IssueKind.MISPLACED_TENSOR, key, facts)
        else:
            yield ContainerIssue(IssueKind.MISSING_TENSOR, key, {"shard": name})


def _iter_stray_tensors(
    weight_map: Mapping[str, str], keys_by_shard: Mapping[str, set[str]]
) -> Iterator[ContainerIssue]:
    for name, keys in keys_by_shard.items():
        for key in sorted(key for key in keys if weight_map.get(key) != name):
            indexed_shard = weight_map.get(key)
            if indexed_shard is None:
                yield ContainerIssue(
                    IssueKind.UNINDEXED, key, {"what": "the tensor", "shard": name}
                )
            elif key in keys_by_shard.get(indexed_shard, ()):
                yield ContainerIssue(
                    IssueKind.UNINDEXED, key, {"what": "a second tensor", "shard": name}
                )
                if name > indexed_shard:  # from_pretrained loads shard after shard, whole
                    yield _build_replaced_tensor_issue(key, indexed_shard, name)


def build_precedence_issue(index_name: str, whole_file: str) -> ContainerIssue:
    """Return the issue of an index in whose place `from_pretrained` loads a whole file."""
    passed_over = f"the shards of {quote_code(index_name)} in the same folder"
    facts = {"loaded": quote_code(whole_file), "passed_over": passed_over}
    return ContainerIssue(IssueKind.PASSED_OVER, index_name, facts)


def _build_replaced_tensor_issue(key: str, indexed_shard: str, name: str) -> ContainerIssue:
    """Return the issue of a tensor that a later shard, `name`, has again."""
    facts = {
        "loaded": f"{quote_code(cut_middle(key))} of {quote_code(name)}",
        "passed_over": f"that of {quote_code(indexed_shard)}, which the index names",
    }
    return ContainerIssue(IssueKind.PASSED_OVER, key, facts)


def _find_read_names(
    index: Location, names: Sequence[str], sibling_names: Sequence[str]
) -> set[str]:
    """Return the shards of the index, and those beside it that have a finding of their own."""
    stray_names = _find_stray_files(index, set(names), sibling_names)
    return {*names, *stray_names, *list_preferred_files(index.name, sibling_names)}


def _find_stray_files(index: Location, names: set[str], sibling_names: Sequence[str]) -> list[str]:
    """Return files named like shards of this index that are not in its weight_map."""
    index_match = _INDEX_NAME.fullmatch(index.name)
    if index_match is None:
        return []
    stem, suffix = map(re.escape, index_match.groups())
    shard = re.compile(rf"{stem}-\d+-of-\d+\.{suffix}")
    return sorted(name for name in sibling_names if shard.fullmatch(name) and name not in names)

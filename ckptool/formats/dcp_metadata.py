""".metadata of a torch.distributed.checkpoint directory: its fields, and where the content lies."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec import Struct

from ckptool.formats.pickle.nodes import GETATTR, GlobalName, PickleTreeError, UnresolvedObject
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.reader import ParsedPickle
from ckptool.formats.pickle.safe_globals import classify_global
from ckptool.formats.pickle.tensors.argument_checks import is_size_or_stride
from ckptool.model import Safety

_METADATA_CLASSES: Final = frozenset(
    {
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "Metadata",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    }
    | {
        ("torch.distributed.checkpoint.filesystem", name)
        for name in ("_StorageInfo", "_StoragePrefix")
    }
    | {("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")}
)
"""Classes of plain records that .metadata is pickled from: (module, name)."""


def make_classifier(pickle: ParsedPickle) -> Callable[[GlobalName], Safety]:
    """Return the Safety of a name in the metadata, which torch opens with a plain unpickler.

    `getattr` is safe where it only looks up members of the metadata's classes: Python 3.11.0 to
    3.11.3 pickles members of an enum in this way.
    """
    safe_names = _METADATA_CLASSES
    if pickle.attribute_calls and all(map(_is_member_lookup, pickle.attribute_calls)):
        safe_names |= {GETATTR}

    def classify(name: GlobalName) -> Safety:
        is_safe = (name.module, name.name) in safe_names and not name.computed
        return Safety.SAFE if is_safe else classify_global(name)

    return classify


def _is_member_lookup(args: tuple[Any, ...]) -> bool:
    owner, name = args if len(args) == 2 else (None, None)
    return (
        type(owner) is GlobalName
        and (owner.module, owner.name) in _METADATA_CLASSES
        and type(name) is str
        and name.isidentifier()
        and not name.startswith("_")
    )


class StoredItem(Struct, frozen=True):
    """One chunk of a tensor or one pickled object, with its byte range in a file."""

    key: str
    offsets: tuple[int, ...] | None
    file_name: str
    offset: int
    nbytes: int
    is_uncompressed: bool
    """Whether the bytes are as torch.save wrote them, without transforms (compression)."""


def read_metadata(
    pickle: ParsedPickle,
) -> tuple[dict[Any, Any], dict[Any, Any], list[StoredItem]]:
    """Return the fields of the metadata, the entry of each key, and where the content lies.

    Raises:
        PickleTreeError: it is no metadata of DCP.
    """
    if pickle.error:
        raise PickleTreeError(pickle.error)
    metadata = read_fields(pickle.root, "Metadata")
    keys = _require_dict(metadata.get("state_dict_metadata"), "its list of keys")
    storage_data = _require_dict(metadata.get("storage_data"), "its list of locations")
    return metadata, keys, list(_iter_stored_items(storage_data))


def _iter_stored_items(storage_data: dict[Any, Any]) -> Iterator[StoredItem]:
    """Yield the location of each chunk and each object.

    Raises:
        PickleTreeError: an entry of storage_data is invalid or leaves the directory.
    """
    for index, storage_info in storage_data.items():
        index_fields, info_fields = (
            read_fields(index, "MetadataIndex"),
            read_fields(storage_info, "_StorageInfo"),
        )
        key, file_name = index_fields.get("fqn"), info_fields.get("relative_path")
        if type(key) is not str or type(file_name) is not str:
            raise PickleTreeError("a chunk without a key or a file")
        if (
            "/" in file_name
            or "\\" in file_name
            or "\0" in file_name
            or file_name in {"", ".", ".."}
        ):
            raise PickleTreeError(
                f"{quote_name(key)} is in {quote_name(file_name)}, outside the directory"
            )
        offsets, byte_range = (
            index_fields.get("offset"),
            (info_fields.get("offset"), info_fields.get("length")),
        )
        if not is_size_or_stride(byte_range) or not (offsets is None or is_size_or_stride(offsets)):
            raise PickleTreeError(f"{quote_name(key)} has an impossible location")
        yield StoredItem(
            key,
            offsets,
            file_name,
            byte_range[0],
            byte_range[1],
            not info_fields.get("transform_descriptors"),
        )


def read_fields(node: object, class_name: str) -> dict[Any, Any]:
    """Return the fields of a DCP metadata object of class `class_name`.

    Raises:
        PickleTreeError: the node is something else.
    """
    if (
        type(node) is UnresolvedObject
        and node.callee_name[1] == class_name
        and isinstance(node.state, dict)
    ):
        return node.state
    raise PickleTreeError(f"something that is not a {class_name} is in place of one")


def _require_dict(node: object, description: str) -> dict[Any, Any]:
    if not isinstance(node, dict):
        raise PickleTreeError(f"{description} is missing")
    return node

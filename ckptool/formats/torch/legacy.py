"""torch.save file before 1.6, or bare pickle -> Checkpoint: pickles, then raw storages."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError, UnknownFormatError
from ckptool.formats.files.gc_pause import pause_gc
from ckptool.formats.files.lookalikes import check_no_archive
from ckptool.formats.files.source import ByteSource
from ckptool.formats.limits import Limits
from ckptool.formats.pickle import states
from ckptool.formats.pickle.global_uses import build_damaged_checkpoint, find_global_uses
from ckptool.formats.pickle.nodes import GlobalName, PersistentReference, PickleTreeError
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.reader import ParsedPickle, parse_pickle, select_dangerous
from ckptool.formats.pickle.storage_ids import (
    STORAGE_DTYPES,
    StorageId,
    check_repeated_id,
    find_untyped_storage,
    parse_storage_id,
    select_byte_storages,
)
from ckptool.formats.pickle.tensors.storage import SavedStorage
from ckptool.formats.torch.streams import PickleStream, SourceSlice
from ckptool.formats.torch.without_tensors import describe_tensorless_pickle
from ckptool.model import Checkpoint, Container, Skipped, Span, StateDict, StorageInfo


def matches(source: ByteSource) -> bool:
    """Whether the file begins with a pickle."""
    head = source.read_head(_HEAD_BYTES)
    if len(head) > 1 and head[0] == 0x80:
        return head[1] <= 5
    # Protocols 0 and 1 have no magic: accept what parses, or imports a valid name before failing.
    pickle = (
        parse_pickle(head, Limits())
        if head[:1] in _FIRST_OPCODES
        else ParsedPickle(error="no opcode")
    )
    return not pickle.error or any(_is_dotted_name(name) for name in pickle.globals)


def read(source: ByteSource, limits: Limits) -> Checkpoint:
    """Describe the file.

    Raises:
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
    """
    check_no_archive(source, "a pickle")
    stream = PickleStream(source, limits)
    container = Container.PICKLE
    try:
        with pause_gc():
            first_pickle = stream.read_pickle("its first pickle")
            if first_pickle.root == MAGIC_NUMBER and type(first_pickle.root) is int:
                container = Container.TORCH_LEGACY
                return _read_legacy(stream, limits)
            return _read_bare_pickle(stream, first_pickle, limits)
    except CorruptCheckpointError as error:
        _refuse_joblib(stream)
        return build_damaged_checkpoint(
            source.path, container, source.nbytes, stream.global_names, error.reason
        )
    except PickleTreeError as error:
        return build_damaged_checkpoint(
            source.path, container, source.nbytes, stream.global_names, str(error)
        )


def _refuse_joblib(stream: PickleStream) -> None:
    """Raise UnknownFormatError if joblib wrote the file, and nothing else in it is dangerous."""
    dangerous_names = {name.qualified_name for name in select_dangerous(stream.global_names)}
    is_joblib = any(name.qualified_name == _JOBLIB_ARRAY for name in stream.global_names)
    if is_joblib and dangerous_names <= {_JOBLIB_ARRAY, _PICKLED_TENSOR}:
        raise UnknownFormatError(
            stream.source.path,
            "it was written by joblib.dump, with NumPy arrays between its opcodes, and "
            "torch.load cannot open it: save the result of joblib.load with torch.save",
        )


_PICKLED_TENSOR: Final = "torch.storage._load_from_bytes"
_JOBLIB_ARRAY: Final = "joblib.numpy_pickle.NumpyArrayWrapper"
_PICKLE_REFUSAL: Final = (
    "it was written by pickle.dump or joblib.dump, not torch.save; load it with the same library"
)
MAGIC_NUMBER: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION: Final = 1001
_HEAD_BYTES: Final = 1 << 16
_COUNT_BYTES: Final = 8
"""Bytes of the element count before each storage."""
_CHECKED_AT_EACH_END: Final = 4
"""In remote files, element counts are read of this many storages at each end."""
_FIRST_OPCODES: Final = frozenset(bytes([opcode]) for opcode in b"(]}cdlgIJKLMSTUVXFGN)i")


def _is_dotted_name(name: GlobalName) -> bool:
    parts = f"{name.module}.{name.name}".split(".")
    return all(part.isidentifier() for part in parts)


def _read_legacy(stream: PickleStream, limits: Limits) -> Checkpoint:
    """Describe a legacy file whose magic number has been read."""
    source = stream.source
    reader = LegacyReader(stream, source.start if isinstance(source, SourceSlice) else 0)
    object_pickle = reader.read()
    if stream.position != source.nbytes:
        stream.global_names += select_dangerous(stream.scan_remaining())
        trailing_nbytes = source.nbytes - stream.position
        raise CorruptCheckpointError(
            source.path, f"{trailing_nbytes} bytes follow the last storage"
        )
    state_tree = states.describe_tree(object_pickle.root, limits)
    if state_tree.is_empty and not select_dangerous(stream.global_names):
        raise CorruptCheckpointError(source.path, describe_tensorless_pickle(object_pickle.root))
    return _build_checkpoint(stream, Container.TORCH_LEGACY, object_pickle, state_tree)


class LegacyReader:
    """Reads the object and the storages of a legacy file, after its magic number."""

    def __init__(self, stream: PickleStream, base_offset: int = 0) -> None:
        self._stream = stream
        self._base_offset = base_offset
        """Offset of the legacy file in the file that embeds it; 0 if it stands alone."""
        self.object_range = (0, 0)
        """(offset, nbytes) of the pickle of the object in the stream's source, once it is read."""

    def read(self) -> ParsedPickle:
        """Return the object's pickle with resolved storages; the stream is past the last storage.

        Raises:
            CorruptCheckpointError: the file is inconsistent.
            PickleTreeError: a storage id or a storage is.
        """
        stream, path = self._stream, self._stream.source.path
        protocol = stream.read_pickle("its protocol version").root
        if protocol != _PROTOCOL_VERSION or type(protocol) is not int:
            raise CorruptCheckpointError(path, "its protocol version is not 1001")
        system = stream.read_pickle("its system information").root
        if not isinstance(system, dict):
            raise CorruptCheckpointError(path, "its system information is not a dict")
        start = stream.position
        object_pickle = stream.read_pickle("its object")
        self.object_range = (start, stream.position - start)
        keys = stream.read_pickle("its list of storages").root
        if not isinstance(keys, list) or not all(type(key) is str for key in keys):
            raise CorruptCheckpointError(path, "its list of storages is not a list of keys")
        self._resolve_storages(object_pickle.persistent_references, keys)
        return object_pickle

    def _resolve_storages(self, nodes: Sequence[PersistentReference], keys: list[str]) -> None:
        node_storages = [
            (node, parse_storage_id(node, fields=6)) for node in nodes if not _is_module_class(node)
        ]
        storages_by_key: dict[str, StorageId] = {}
        for _, storage in node_storages:
            storages_by_key.setdefault(storage.key, storage)
        _check_storage_keys(storages_by_key, keys)
        checked_keys = self._select_checked_keys([storages_by_key[key] for key in keys])
        stored_by_key = {
            key: self._read_storage(storages_by_key[key], is_checked=key in checked_keys)
            for key in keys
        }
        for node, storage in node_storages:
            node.target = _apply_view(
                check_repeated_id(stored_by_key[storage.key], storage), storage
            )

    def _select_checked_keys(self, storages: Sequence[StorageId]) -> set[str]:
        """Return the keys of the storages whose element counts are read; in remote files, a few.

        A wrong count elsewhere shifts the last ones, or the end of the file.
        """
        stream, starts = self._stream, list[int]()
        position = stream.position
        for storage in storages:
            starts.append(position)
            position += _COUNT_BYTES + storage.nbytes
        checked_storages = storages
        if (
            stream.source.is_remote
            and not stream.limits.deep
            and len(storages) > 2 * _CHECKED_AT_EACH_END
        ):
            checked_storages = [*storages[:_CHECKED_AT_EACH_END], *storages[-_CHECKED_AT_EACH_END:]]
            reason = (
                f"{len(storages) - len(checked_storages)} of {len(storages)} were taken from the "
                "pickle, which matches the file's length; --deep reads them"
            )
            stream.skipped.append(Skipped("sizes before the storages", reason))
        keys = {storage.key for storage in checked_storages}
        offsets = zip(storages, starts, strict=True)
        stream.source.prefetch(
            (offset, _COUNT_BYTES) for storage, offset in offsets if storage.key in keys
        )
        return keys

    def _read_storage(self, storage: StorageId, *, is_checked: bool) -> SavedStorage:
        """Return the storage at the stream position: check its element count, skip its bytes."""
        stream, count = self._stream, storage.numel
        if is_checked:
            count = stream.read_int64()
        else:
            stream.skip_bytes(_COUNT_BYTES)
        if count != storage.numel:
            name = quote_name(storage.key)
            raise PickleTreeError(f"storage {name} has {count} elements instead of {storage.numel}")
        start = stream.position
        stream.skip_bytes(storage.nbytes)
        span = Span(stream.source.path, self._base_offset + start, storage.nbytes)
        # torch writes and reads this format in little-endian order, whatever the machine.
        info = StorageInfo(storage.key, storage.nbytes, storage.location, span)
        return SavedStorage(info, storage.dtype, storage.numel)


def _check_storage_keys(storages_by_key: dict[str, StorageId], keys: list[str]) -> None:
    """Raise PickleTreeError unless used and listed storage keys are the same.

    torch leaves a storage that is not in the list uninitialised: it exposes process memory.
    """
    listed_keys = set(keys)
    for key in storages_by_key:
        if key not in listed_keys:
            raise PickleTreeError(
                f"storage {quote_name(key)} is used but not in the list of storages"
            )
    for key in listed_keys:
        if key not in storages_by_key:
            raise PickleTreeError(
                f"storage {quote_name(key)} is in the list of storages but not used"
            )
    if len(listed_keys) != len(keys):
        raise PickleTreeError("a storage appears twice in the list of storages")


def _is_module_class(node: PersistentReference) -> bool:
    """Whether the id is ("module", class, file, source): source code of a pickled module."""
    return type(node.id) is tuple and node.id[:1] == ("module",)


def _apply_view(saved_storage: SavedStorage, storage: StorageId) -> SavedStorage:
    """Return the storage slice that the id's view names; torch before 0.4 saved slices so."""
    if storage.legacy_view is None:
        return saved_storage
    view = storage.legacy_view
    if type(view) is not tuple or len(view) != 3:
        raise PickleTreeError(f"storage {quote_name(storage.key)} has an invalid view")
    _, offset, numel = view
    if not all(type(number) is int and number >= 0 for number in (offset, numel)):
        raise PickleTreeError(f"storage {quote_name(storage.key)} has an invalid view")
    if offset + numel > saved_storage.numel:
        raise PickleTreeError(f"storage {quote_name(storage.key)} has a view beyond its end")
    return SavedStorage(saved_storage.info, saved_storage.dtype, numel, offset)


def _read_bare_pickle(stream: PickleStream, pickle: ParsedPickle, limits: Limits) -> Checkpoint:
    """Describe a bare pickle, whose tensors embed whole torch.save files as byte strings."""
    source = stream.source
    if stream.position != source.nbytes:
        trailing_nbytes = source.nbytes - stream.position
        stream.global_names += stream.scan_remaining()
        magic_hint = f", and {quote_name(str(pickle.root))} is not torch's magic number"
        hint = magic_hint if type(pickle.root) is int and pickle.root.bit_length() < 256 else ""
        raise CorruptCheckpointError(
            source.path, f"{trailing_nbytes} bytes follow its first pickle{hint}"
        )
    if pickle.persistent_references:
        raise CorruptCheckpointError(
            source.path,
            "its pickle refers to storages that are missing: it is one record of an archive, so "
            "give the archive, or the folder that it was unpacked to",
        )
    state_tree = states.describe_tree(
        pickle.root, limits, _build_embedded_finder(stream, pickle, limits)
    )
    if state_tree.is_empty and not select_dangerous(stream.global_names):
        raise CorruptCheckpointError(
            source.path, f"a pickle that {describe_tensorless_pickle(pickle.root)}"
        )
    checkpoint = _build_checkpoint(stream, Container.PICKLE, pickle, state_tree)
    refusal = _find_dtype_without_storage(state_tree.states) or _PICKLE_REFUSAL
    return replace(checkpoint, load_refusal=refusal)


def _build_embedded_finder(
    stream: PickleStream, pickle: ParsedPickle, limits: Limits
) -> Callable[[bytes], SavedStorage]:
    """Return a function from byte string to storage, for `torch.storage._load_from_bytes`."""
    stored_by_id: dict[int, SavedStorage] = {}

    def find_storage(blob: bytes) -> SavedStorage:
        if id(blob) not in stored_by_id:
            start = stream.find_blob_offset(pickle, blob)
            if start < 0:
                raise PickleTreeError(
                    "a storage inside the pickle is text, as pickle protocols 0 to 2 write bytes,"
                    " and not a file of torch.save"
                )
            blob_slice = SourceSlice(stream.source, start, len(blob))
            saved_storage = read_embedded_storage(blob_slice, limits).target
            # Each was saved separately with an address as key: two keys can be equal.
            info = saved_storage.info
            indexed_info = StorageInfo(f"{len(stored_by_id)}", info.nbytes, info.device, info.span)
            stored_by_id[id(blob)] = SavedStorage(
                indexed_info, saved_storage.dtype, saved_storage.numel
            )
        return stored_by_id[id(blob)]

    return find_storage


def read_embedded_storage(blob_slice: SourceSlice, limits: Limits) -> PersistentReference:
    """Return the reference to the storage that a byte string of a bare pickle is a file of.

    Raises:
        PickleTreeError: it is something else.
    """
    stream = PickleStream(blob_slice, limits)
    if stream.read_pickle("a storage inside the pickle").root != MAGIC_NUMBER:
        raise PickleTreeError("a storage inside the pickle is not a legacy torch.save file")
    root = LegacyReader(stream, blob_slice.start).read().root
    if type(root) is not PersistentReference or type(root.target) is not SavedStorage:
        raise PickleTreeError("a storage inside the pickle is something else")
    return root


def _find_dtype_without_storage(found_states: Iterable[StateDict]) -> str:
    """Return why pickle.load refuses a tensor that pickle.dump wrote; "" if it refuses none.

    Its storage is embedded as a file of before 1.6, whose reader asks the storage's class for the
    dtype.
    """
    typed = {*STORAGE_DTYPES.values()}
    tensors = (tensor for state in found_states for tensor in state.tensors.values())
    tensor = next((t for t in tensors if t.storage is not None and t.dtype not in typed), None)
    if tensor is None:
        return ""
    return (
        f"it was written by pickle.dump, which cannot be loaded again with {tensor.dtype} tensors "
        f"such as {quote_name(tensor.key)}"
    )


def _find_stream_refusal(pickle: ParsedPickle, found_states: Iterable[StateDict]) -> str:
    """Return why torch.load refuses what a file before 1.6 holds, "" if it does not."""
    key = find_untyped_storage(pickle.persistent_references)
    if not key:
        return _find_nested_tensor(found_states)
    return (
        f"storage {quote_name(key)} has no dtype, as torch.save writes it for float8, uint16 and "
        "other late dtypes, and only a zip archive can be loaded with it"
    )


def _find_nested_tensor(found_states: Iterable[StateDict]) -> str:
    """Return why torch.load refuses a nested tensor before 1.6; "" if there is none.

    torch calls the rebuild function before it has read any storage: sizes are what memory held.
    """
    keys = (
        key
        for state in found_states
        for key, tensor in state.tensors.items()
        if tensor.layout == "nested"
    )
    key = next(keys, None)
    if key is None:
        return ""
    return f"it builds the nested tensor {quote_name(key)} before its sizes are read"


def _build_checkpoint(
    stream: PickleStream, container: Container, pickle: ParsedPickle, state_tree: states.PickleTree
) -> Checkpoint:
    is_stream = container is Container.TORCH_LEGACY
    return Checkpoint(
        stream.source.path,
        container,
        stream.source.nbytes,
        tuple(state_tree.states),
        tuple(state_tree.entries),
        find_global_uses(stream.global_names, pickle.root),
        skipped=(*stream.skipped, *state_tree.skipped),
        unread=pickle.list_unread(),
        opaque=tuple(state_tree.opaque),
        contents=state_tree.contents,
        load_refusal=_find_stream_refusal(pickle, state_tree.states) if is_stream else "",
        weights_only_refusal=stream.refusal,
        byte_storages=select_byte_storages(pickle.persistent_references),
    )

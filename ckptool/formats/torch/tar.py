"""tar checkpoint of torch before 0.1.10 -> Checkpoint: storages, tensors, then a pickle."""

import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files.gc_pause import pause_gc
from ckptool.formats.files.lookalikes import is_tar_header
from ckptool.formats.files.source import ByteSource
from ckptool.formats.limits import Limits
from ckptool.formats.pickle import states
from ckptool.formats.pickle.global_uses import build_damaged_checkpoint, find_global_uses
from ckptool.formats.pickle.nodes import GlobalName, PickleTreeError
from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.pickle.reader import (
    ParsedPickle,
    parse_whole_pickle,
    select_dangerous,
    select_unsafe,
)
from ckptool.formats.pickle.storage_ids import get_storage_dtype
from ckptool.formats.pickle.tensors.rebuild_functions import create_tensor_reader
from ckptool.formats.pickle.tensors.storage import SavedStorage
from ckptool.formats.torch.streams import PickleStream
from ckptool.model import DTYPE_BITS, Checkpoint, Container, Span, StorageInfo, TensorInfo


def matches(source: ByteSource) -> bool:
    """Whether the file begins with a tar header: torch.load opens it as one, before a pickle."""
    head = source.read_head(_BLOCK_BYTES)
    return head[257:262] == b"ustar" or is_tar_header(head)


def read(source: ByteSource, limits: Limits) -> Checkpoint:
    """Describe the archive.

    Raises:
        CorruptCheckpointError: it is inconsistent, and holds no dangerous globals.
    """
    global_names: list[GlobalName] = []
    members: list[_TarMember] = []
    try:
        with pause_gc():
            members.extend(_iter_members(source))
            return _TarReader(source, limits, members, global_names).read()
    except CorruptCheckpointError as error:
        reason = error.reason
    except PickleTreeError as error:
        reason = str(error)
    global_names += _scan_members(source, members, limits)
    return build_damaged_checkpoint(
        source.path, Container.TORCH_TAR, source.nbytes, global_names, reason
    )


def read_object(source: ByteSource, limits: Limits) -> tuple[bytes, ParsedPickle]:
    """Return the pickle of the object that was saved, and the same with resolved references.

    Raises:
        CorruptCheckpointError: the archive is inconsistent.
    """
    return _TarReader(source, limits, list(_iter_members(source)), []).read_object()


_BLOCK_BYTES: Final = 512
_MAX_MEMBERS: Final = 64
_REQUIRED_MEMBERS: Final = ("storages", "tensors", "pickle")
_TIME_RECORDS: Final = re.compile(rb"(?:\d+ (?:mtime|atime|ctime)=[\d.]+\n)*")
"""Allowed records of an extended header: times only, none that renames a member."""


class _TarMember(Struct, frozen=True):
    name: str
    start: int
    nbytes: int


def _iter_members(source: ByteSource) -> Iterator[_TarMember]:
    """Yield the members.

    Raises:
        CorruptCheckpointError: a member is not a regular file, or there are too many.
    """
    position = 0
    for _ in range(_MAX_MEMBERS):
        header = source.read(position, _BLOCK_BYTES)
        position += _BLOCK_BYTES
        if header == bytes(_BLOCK_BYTES):
            _check_end(source, position)
            return
        name, nbytes, type_flag = _parse_header(source, header)
        if type_flag in {b"0", b"\0"}:
            yield _TarMember(name, position, nbytes)
        elif type_flag != b"x" or not _TIME_RECORDS.fullmatch(
            source.read(position, min(nbytes, _BLOCK_BYTES))
        ):
            raise CorruptCheckpointError(source.path, f"{quote_name(name)} is not a regular file")
        position += (nbytes + _BLOCK_BYTES - 1) // _BLOCK_BYTES * _BLOCK_BYTES
    raise CorruptCheckpointError(source.path, f"a tar archive of more than {_MAX_MEMBERS} members")


def _parse_header(source: ByteSource, header: bytes) -> tuple[str, int, bytes]:
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    stored_checksum, nbytes = _parse_octal(header[148:156]), _parse_octal(header[124:136])
    if stored_checksum != checksum or nbytes is None or header[257:262] != b"ustar":
        raise CorruptCheckpointError(source.path, "an invalid tar header")
    name = header[:100].partition(b"\0")[0].decode("latin-1")
    if header[345:500].strip(b"\0"):
        raise CorruptCheckpointError(source.path, f"{quote_name(name)} is in a folder")
    return name, nbytes, header[156:157]


def _parse_octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


def _check_end(source: ByteSource, position: int) -> None:
    trailing_nbytes = source.nbytes - position
    if trailing_nbytes > 1 << 20 or source.read(position, trailing_nbytes).strip(b"\0"):
        raise CorruptCheckpointError(
            source.path, f"{trailing_nbytes} bytes follow the end of the tar archive"
        )


class _TarReader:
    """Reads the members storages, tensors and pickle; each refers to the previous one."""

    def __init__(
        self,
        source: ByteSource,
        limits: Limits,
        members: list[_TarMember],
        global_names: list[GlobalName],
    ) -> None:
        self._source = source
        self._limits = limits
        self._members = {member.name: member for member in members}
        self._global_names = global_names
        self._objects_by_number: dict[int, SavedStorage | TensorInfo] = {}
        """Storages and tensors by the number that refers to them in the pickles."""
        for name in self._members:
            if "/" in name or name in {"", ".", ".."}:
                raise self._build_error(
                    f"a member is named {quote_name(name)}: it is outside the archive"
                )
        if len(self._members) != len(members):
            raise self._build_error("a member appears twice in it")
        for name in _REQUIRED_MEMBERS:
            if name not in self._members:
                raise self._build_error(
                    f"a tar archive without {quote_name(name)}: torch did not write it"
                )

    def read(self) -> Checkpoint:
        _, pickle = self.read_object()
        return self._build_checkpoint(pickle)

    def read_object(self) -> tuple[bytes, ParsedPickle]:
        """Return the pickle of the object, as it stands and with resolved references.

        Raises:
            CorruptCheckpointError: the archive is inconsistent.
        """
        self._read_storages(self._open_member("storages"))
        self._read_tensors(self._open_member("tensors"))
        main_member = self._members["pickle"]
        if main_member.nbytes > self._limits.pickle_bytes:
            raise self._build_error(
                f"'pickle' has {main_member.nbytes} bytes, more than any pickle can need"
            )
        data = self._source.read(main_member.start, main_member.nbytes)
        pickle = parse_whole_pickle(data, self._limits)
        self._global_names += pickle.globals
        if pickle.error:
            raise self._build_error(f"'pickle': {pickle.error}")
        for node in pickle.persistent_references:
            node.target = self._resolve_id(node.id)
        return data, pickle

    def _build_checkpoint(self, pickle: ParsedPickle) -> Checkpoint:
        root = pickle.root
        state_tree = states.describe_tree(root, self._limits)
        extra_members = [
            member for name, member in self._members.items() if name not in _REQUIRED_MEMBERS
        ]
        self._global_names += select_unsafe(
            _scan_members(self._source, extra_members, self._limits)
        )
        if state_tree.is_empty and not select_dangerous(self._global_names):
            raise self._build_error("contains no tensors")
        return Checkpoint(
            self._source.path,
            Container.TORCH_TAR,
            self._source.nbytes,
            tuple(state_tree.states),
            tuple(state_tree.entries),
            find_global_uses(self._global_names, root),
            skipped=tuple(state_tree.skipped),
            unread=pickle.list_unread(),
            opaque=tuple(state_tree.opaque),
            contents=state_tree.contents,
            weights_only_refusal="it is a tar archive, of torch before 0.1.10",
        )

    def _read_storages(self, stream: PickleStream) -> None:
        """Read the count, then for each storage: pickled (key, location, class), numel, bytes."""
        for _ in range(self._read_count(stream)):
            key, location, cls = self._read_triple(stream)
            dtype = get_storage_dtype(cls, str(key))
            count = stream.read_int64()
            start, nbytes = stream.position, count * DTYPE_BITS[dtype] // 8
            stream.skip_bytes(nbytes)
            device = location if type(location) is str and location.isascii() else "cpu"
            span = Span(self._source.path, start, nbytes)
            self._add_object(
                key, SavedStorage(StorageInfo(str(key), nbytes, device, span), dtype, count)
            )
        views = self._read_pickle(stream)
        if not isinstance(views, list):
            raise self._build_error("its list of views is not a list")
        for view in views:
            self._add_view(view)
        self._check_all_read(stream)

    def _add_view(self, view: Any) -> None:
        if (
            type(view) is not tuple
            or len(view) != 4
            or not all(type(number) is int for number in view)
        ):
            raise self._build_error("a view of an invalid storage")
        key, root, offset, numel = view
        stored_object = self._objects_by_number.get(root)
        if (
            type(stored_object) is not SavedStorage
            or min(offset, numel) < 0
            or offset + numel > stored_object.numel
        ):
            raise self._build_error("a view outside its storage")
        self._add_object(
            key,
            SavedStorage(
                stored_object.info, stored_object.dtype, numel, stored_object.start + offset
            ),
        )

    def _read_tensors(self, stream: PickleStream) -> None:
        """Read the count, then for each tensor: pickled (key, storage, class), sizes, strides."""
        tensors = create_tensor_reader(self._limits)
        for _ in range(self._read_count(stream)):
            key, storage, _ = self._read_triple(stream)
            stored_object = self._objects_by_number.get(storage) if type(storage) is int else None
            if type(stored_object) is not SavedStorage:
                raise self._build_error("a tensor without its storage")
            rank = int.from_bytes(stream.read_bytes(8)[:4], "little", signed=True)
            if not 0 <= rank <= self._limits.rank:
                raise self._build_error(f"a tensor of {rank} dimensions")
            size = tuple(stream.read_int64() for _ in range(rank))
            stride = tuple(stream.read_int64() for _ in range(rank))
            view = (stream.read_int64(), size, stride)
            self._add_object(
                key,
                tensors.build_strided_tensor(str(key), stored_object, stored_object.dtype, view),
            )
        self._check_all_read(stream)

    def _open_member(self, name: str) -> PickleStream:
        member = self._members[name]
        if member.start + member.nbytes > self._source.nbytes:
            raise self._build_error(f"{quote_name(name)} is truncated")
        return PickleStream(self._source, self._limits, member.start, member.start + member.nbytes)

    def _read_pickle(self, stream: PickleStream) -> object:
        try:
            return stream.read_pickle("a record").root
        finally:
            self._global_names += stream.global_names
            stream.global_names = []

    def _read_count(self, stream: PickleStream) -> int:
        count = self._read_pickle(stream)
        if type(count) is not int or not 0 <= count <= stream.end - stream.position:
            raise self._build_error("an impossible number of records")
        return count

    def _read_triple(self, stream: PickleStream) -> tuple[Any, Any, Any]:
        record = self._read_pickle(stream)
        if type(record) is not tuple or len(record) != 3:
            raise self._build_error("a record that is not a triple")
        return record

    def _add_object(self, key: object, value: SavedStorage | TensorInfo) -> None:
        if type(key) is not int or key in self._objects_by_number:
            raise self._build_error(
                "two records with the same number, or a record without a number"
            )
        self._objects_by_number[key] = value

    def _resolve_id(self, id_: object) -> SavedStorage | TensorInfo | None:
        """Return the storage or tensor of a persistent id; None for a tuple (it names a class)."""
        if type(id_) is tuple:
            return None
        number = int(id_) if type(id_) is str and id_.isdecimal() and len(id_) < 20 else id_
        if type(number) is not int or number not in self._objects_by_number:
            raise self._build_error("the pickle refers to a tensor that is missing")
        return self._objects_by_number[number]

    def _check_all_read(self, stream: PickleStream) -> None:
        if stream.position != stream.end:
            raise self._build_error(f"{stream.end - stream.position} bytes follow the last record")

    def _build_error(self, reason: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(self._source.path, reason)


def _scan_members(
    source: ByteSource, members: list[_TarMember], limits: Limits
) -> list[GlobalName]:
    """Return the globals of pickles at the start of each member."""
    global_names: list[GlobalName] = []
    for member in members:
        end = min(member.start + member.nbytes, source.nbytes)
        if member.start < end:
            global_names += PickleStream(source, limits, member.start, end).scan_remaining()
    return global_names

"""Array of an .npz archive -> TensorInfo, without numpy."""

import ast
from typing import Any, Final

from ckptool.errors import PlanError
from ckptool.formats.files import Source, open_source
from ckptool.formats.limits import Limits
from ckptool.formats.zips import STORED, Member, read_archive, read_member
from ckptool.locations import Location
from ckptool.migration.draft import c_order
from ckptool.migration.memory import Memory
from ckptool.model import BITS, Span, StorageInfo, TensorInfo

_MAGIC: Final = b"\x93NUMPY"
_HEADER: Final = 65536
_DTYPES: Final = {
    "<f8": "float64", "<f4": "float32", "<f2": "float16", "<i8": "int64", "<i4": "int32",
    "<i2": "int16", "|i1": "int8", "<u8": "uint64", "<u4": "uint32", "<u2": "uint16",
    "|u1": "uint8", "|b1": "bool", "<c8": "complex64", "<c16": "complex128",
}  # fmt: skip
"""numpy dtype string -> torch dtype name."""


def read_array(path: Location, name: str, memory: Memory, limits: Limits) -> TensorInfo:
    """Describe the array `name` of the archive at `path`; compressed arrays are inflated.

    Raises:
        PlanError: the archive has no such array, or it is not numeric.
        ReadError: the archive cannot be read.
    """
    with open_source(path) as source:
        archive = read_archive(source, limits)
        members = {m.name.removesuffix(".npy"): m for m in archive.members}
        if name not in members or archive.fault:
            reason = archive.fault or f"there are {', '.join(members)}"
            raise PlanError(f"{path}: no array {name!r} can be read: {reason}")
        return _array(source, members[name], memory, limits)


def _array(source: Source, member: Member, memory: Memory, limits: Limits) -> TensorInfo:
    head = read_member(source, member, limits, _HEADER)
    header, start = _header(source.path, member, head)
    dtype, shape = _DTYPES.get(str(header.get("descr"))), header.get("shape")
    if dtype is None or not isinstance(shape, tuple):
        raise PlanError(f"{source.path}: {member.name} is no array of numbers that torch has")
    order = c_order(shape[::-1])[::-1] if header.get("fortran_order") else c_order(shape)
    if member.method == STORED:
        span = Span(source.path, member.start + start, member.nbytes - start)
        storage = StorageInfo(f"npz {member.name}", span.nbytes, span=span)
        found = TensorInfo(member.name, shape, dtype, order, 0, storage)
    else:
        data = read_member(source, member, limits, member.nbytes)[start:]
        count = len(data) * 8 // BITS[dtype]
        flat = memory.tensor(member.name, dtype, (count,), data)
        found = TensorInfo(member.name, shape, dtype, order, 0, flat.storage)
    if found.storage is None or found.nbytes != found.storage.nbytes:
        raise PlanError(f"{source.path}: {member.name} is not as large as it says")
    return found


def _header(path: Location, member: Member, head: bytes) -> tuple[dict[str, Any], int]:
    """Return the header of an .npy file, and the byte offset of its elements."""
    if head[:6] != _MAGIC or len(head) < 12:
        raise PlanError(f"{path}: {member.name} is no .npy file")
    wide = head[6] > 1
    length = int.from_bytes(head[8:12] if wide else head[8:10], "little")
    begin = 12 if wide else 10
    try:
        header = ast.literal_eval(head[begin : begin + length].decode("latin-1").strip())
    except (ValueError, SyntaxError) as error:
        raise PlanError(f"{path}: the header of {member.name} cannot be read") from error
    if not isinstance(header, dict):
        raise PlanError(f"{path}: the header of {member.name} is no dict")
    return header, begin + length

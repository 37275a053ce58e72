"""Array of an .npz archive -> TensorInfo, without numpy."""

from typing import Any, Final

from ckptool.errors import PlanError
from ckptool.formats.files.source import ByteSource, open_source
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.numpy_arrays import NUMPY_DTYPES, is_shape
from ckptool.formats.python_text import evaluate_literal
from ckptool.formats.zip.archive import STORED, ZipMember, read_archive, read_member
from ckptool.locations import Location
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.model import DTYPE_BITS, Span, StorageInfo, TensorInfo, contiguous_stride
from ckptool.phrases import MAX_NAMED, join_limited

_MAGIC: Final = b"\x93NUMPY"
_MAX_HEADER_NBYTES: Final = 65536


def read_array(
    path: Location, name: str, anonymous_file: AnonymousFile, limits: Limits
) -> TensorInfo:
    """Describe the array `name` of the archive at `path`; compressed arrays are inflated.

    Raises:
        PlanError: the archive has no such array, or it is not numeric.
        ReadError: the archive cannot be read.
    """
    with open_source(path) as source:
        archive = read_archive(source, limits)
        members = {member.name.removesuffix(".npy"): member for member in archive.members}
        if name not in members or archive.fault:
            reason = archive.fault or f"there are {join_limited(members, MAX_NAMED)}"
            raise PlanError(f"{path}: no array {name!r} can be read: {reason}")
        return _describe_array(source, members[name], anonymous_file, limits)


def _describe_array(
    source: ByteSource, member: ZipMember, anonymous_file: AnonymousFile, limits: Limits
) -> TensorInfo:
    header_bytes = read_member(source, member, limits, _MAX_HEADER_NBYTES)
    header, start = _parse_header(source.path, member, header_bytes)
    dtype, shape = _find_dtype(header.get("descr")), header.get("shape")
    if dtype is None or not is_shape(shape):
        raise PlanError(f"{source.path}: {member.name} is not an array with a torch dtype")
    stride = (
        contiguous_stride(shape[::-1])[::-1]
        if header.get("fortran_order")
        else contiguous_stride(shape)
    )
    if member.method == STORED:
        span = Span(source.path, member.data_offset + start, member.nbytes - start)
        storage = StorageInfo(f"npz {member.name}", span.nbytes, span=span)
        tensor = TensorInfo(member.name, shape, dtype, stride, 0, storage)
    else:
        data = read_member(source, member, limits, member.nbytes)[start:]
        numel = len(data) * 8 // DTYPE_BITS[dtype]
        flat_tensor = anonymous_file.add_tensor(member.name, dtype, (numel,), data)
        tensor = TensorInfo(member.name, shape, dtype, stride, 0, flat_tensor.storage)
    if tensor.storage is None or tensor.nbytes != tensor.storage.nbytes:
        raise PlanError(f"{source.path}: {member.name} is smaller than its header says")
    return tensor


def _find_dtype(descriptor: object) -> str | None:
    """Return torch's name of "<f4" (little-endian) or "|u1" (one byte); None for all others."""
    text = str(descriptor)
    return NUMPY_DTYPES.get(text[1:]) if text[:1] in {"<", "|"} else None


def _parse_header(
    path: Location, member: ZipMember, header_bytes: bytes
) -> tuple[dict[str, Any], int]:
    """Return the header of an .npy file, and the byte offset of its elements."""
    if header_bytes[:6] != _MAGIC or len(header_bytes) < 12:
        raise PlanError(f"{path}: {member.name} is not a .npy file")
    has_long_length = header_bytes[6] > 1
    length = int.from_bytes(header_bytes[8:12] if has_long_length else header_bytes[8:10], "little")
    header_start = 12 if has_long_length else 10
    try:
        header = evaluate_literal(
            header_bytes[header_start : header_start + length].decode("latin-1").strip()
        )
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise PlanError(f"{path}: the header of {member.name} cannot be read") from error
    if not isinstance(header, dict):
        raise PlanError(f"{path}: the header of {member.name} is not a dict")
    return header, header_start + length

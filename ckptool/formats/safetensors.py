"""safetensors file -> Checkpoint: parses and validates the header; reads no tensor data."""

import re
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import accumulate
from math import prod
from operator import mul
from types import MappingProxyType
from typing import Final, TypeGuard

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.collector import paused_collector
from ckptool.formats.files import Source
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.formats.strict_json import JsonReader, decode, named, quoted, shown
from ckptool.locations import Location
from ckptool.model import BITS, Checkpoint, Container, Skipped, Span, State, StorageInfo, TensorInfo

DTYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "I64": "int64",
        "I32": "int32",
        "I16": "int16",
        "I8": "int8",
        "U64": "uint64",
        "U32": "uint32",
        "U16": "uint16",
        "U8": "uint8",
        "BOOL": "bool",
        "C64": "complex64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2": "float8_e5m2",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "F6_E2M3": "float6_e2m3fn",
        "F6_E3M2": "float6_e3m2fn",
        "F4": "float4_e2m1fn",
    }
)
"""safetensors dtype name -> torch dtype name."""

VERSIONS: Final = "ckptool.versions"
"""`__metadata__` key with the module versions of `state_dict._metadata`, as JSON."""

_LENGTH_BYTES = 8
_LARGEST = 2**63 - 1
_BEFORE_BRACE = frozenset([b" ", b"\t", b"\r", b"\n", b"\xef"])
"""Blanks, and the first byte of a UTF-8 byte-order mark."""
_OPCODES = frozenset(b"().012BCFGIJKLMNPQRSTUVX]abcdeghijlopqrstu}" + bytes(range(0x80, 0x99)))
_PICKLE_START = 1 << 12
"""Bytes that nearly always suffice to see that a header is no pickle."""
_PICKLE_HEAD = 1 << 20
_FEW = 8
_END_OF_ZIP_BYTES = 22
_LONGEST_COMMENT = 65_535


class _EntryError(Exception):
    """A tensor entry is invalid; the caller adds the tensor's name."""


def matches(source: Source) -> bool:
    """Whether it starts with a header length and a JSON object.

    Files truncated inside the header, or with blanks before it, match too and fail in `read`.
    """
    head = source.head(_LENGTH_BYTES + 1)
    length, first = int.from_bytes(head[:_LENGTH_BYTES], "little"), head[_LENGTH_BYTES:]
    plausible = length <= max(DEFAULT.header_bytes, source.nbytes - _LENGTH_BYTES)
    return plausible and (first == b"{" or (length > 0 and first in _BEFORE_BRACE))


def read(source: Source, limits: Limits) -> Checkpoint:
    """Describe a safetensors file.

    Raises:
        CorruptCheckpointError: it violates the format, or is also a zip archive or a pickle.
    """
    with paused_collector():
        metadata, tensors = _header(source, limits)
        start = _LENGTH_BYTES + _length(source)
        _check_cover(source, start, tensors.values())
    _check_no_zip(source)
    _check_no_pickle(source, limits)
    versions, skipped = _versions(source.path, metadata, limits)
    return Checkpoint(
        path=source.path,
        container=Container.SAFETENSORS,
        nbytes=source.nbytes,
        states=(State("", tensors, versions=versions),),
        metadata=metadata,
        skipped=skipped,
    )


def _header(source: Source, limits: Limits) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Return `__metadata__` and the tensors, in header order."""
    length = _length(source)
    if length > limits.header_bytes:
        reason = f"the header claims {length} bytes; the format allows {limits.header_bytes}"
        raise CorruptCheckpointError(source.path, reason)
    if source.read(_LENGTH_BYTES, length and 1) != b"{":
        raise CorruptCheckpointError(source.path, "the header does not begin with a brace")
    start = _LENGTH_BYTES + length
    source.ahead([(0, start)])
    metadata: dict[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    header = JsonReader(
        source.path,
        lambda at, nbytes: source.read(_LENGTH_BYTES + at, nbytes),
        length,
        limits,
        "the header",
    )
    for name in header.members():
        if name == "__metadata__":
            metadata = _metadata(source.path, header.value(limits.metadata_bytes))
        else:
            entry = header.value(limits.entry_bytes)
            tensors[name] = _tensor(source.path, name, entry, start, limits)
    if rest := header.rest(" "):
        reason = f"{quoted(rest)} follows the header's JSON; only spaces may"
        raise CorruptCheckpointError(source.path, reason)
    return metadata, tensors


def _length(source: Source) -> int:
    return int.from_bytes(source.read(0, _LENGTH_BYTES), "little")


def _metadata(path: Location, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise CorruptCheckpointError(path, f"__metadata__ is {named(value)}, not an object")
    for key, text in value.items():
        if not isinstance(text, str):
            reason = f"__metadata__ has {named(text)} under {quoted(key)}; only strings are allowed"
            raise CorruptCheckpointError(path, reason)
    return value


def _tensor(path: Location, name: str, entry: object, start: int, limits: Limits) -> TensorInfo:
    try:
        code, shape, begin, end = _fields(entry, limits)
        _check_size(code, shape, end - begin)
    except _EntryError as error:
        raise CorruptCheckpointError(path, f"tensor {quoted(name)}: {error}") from error
    dtype, shape = _as_torch(code, shape)
    return TensorInfo(
        key=name,
        shape=shape,
        dtype=dtype,
        stride=_stride(shape),
        storage_offset=0,
        storage=StorageInfo(name, end - begin, span=Span(path, start + begin, end - begin)),
    )


def _fields(entry: object, limits: Limits) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict):
        raise _EntryError(f"it is {named(entry)} where an object belongs")
    try:
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    except KeyError as error:
        raise _EntryError(f"it has no {error.args[0]}") from error
    if not isinstance(code, str) or code not in DTYPES:
        raise _EntryError(f"its dtype is {shown(code)}; safetensors has {', '.join(DTYPES)}")
    if not _naturals(shape):
        raise _EntryError(f"its shape is {_numbers(shape)}, not a list of sizes")
    if len(shape) > limits.rank:
        raise _EntryError(f"it has {len(shape)} dimensions; up to {limits.rank} are read")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _EntryError(f"its data_offsets are {_numbers(offsets)}, not a begin and an end")
    return code, tuple(shape), offsets[0], offsets[1]


def _naturals(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    for number in value:  # noqa: SIM110 - a generator would double the time of it all
        if type(number) is not int or not 0 <= number <= _LARGEST:
            return False
    return True


def _numbers(value: object) -> str:
    if isinstance(value, list) and len(value) <= _FEW:
        return f"[{', '.join(map(shown, value))}]"
    return shown(value)


def _check_size(code: str, shape: tuple[int, ...], nbytes: int) -> None:
    bits = prod(shape) * BITS[DTYPES[code]]
    if bits != nbytes * 8:
        wanted = f"{bits // 8} bytes" if bits % 8 == 0 else f"{bits} bits"
        raise _EntryError(f"{code} {list(shape)} takes {wanted} and has {nbytes}")
    if bits == 0 and max(accumulate(shape, mul)) > _LARGEST:
        raise _EntryError(f"its shape {list(shape)} overflows")


def _as_torch(code: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return torch dtype and shape; F4 with an even last dimension becomes float4_e2m1fn_x2."""
    if code == "F4" and shape and shape[-1] % 2 == 0:
        return "float4_e2m1fn_x2", (*shape[:-1], shape[-1] // 2)
    return DTYPES[code], shape


@lru_cache(maxsize=4096)
def _stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(accumulate(reversed(shape[1:]), mul, initial=1))[::-1] if shape else ()


def _check_cover(source: Source, start: int, tensors: Iterable[TensorInfo]) -> None:
    """Raise CorruptCheckpointError unless the tensors cover the data exactly, without overlap."""
    spans = [(t.storage.span, t.key) for t in tensors if t.storage and t.storage.span]
    spans.sort(key=lambda pair: (pair[0].offset, pair[0].nbytes))
    end, before = start, ""
    for span, key in spans:
        if span.offset < end:
            reason = f"tensors {quoted(before)} and {quoted(key)} share bytes"
            raise CorruptCheckpointError(source.path, reason)
        if span.offset > end:
            reason = f"{span.offset - end} bytes before tensor {quoted(key)} belong to no tensor"
            raise CorruptCheckpointError(source.path, reason)
        end, before = span.offset + span.nbytes, key
    if end > source.nbytes:
        reason = f"its tensors end at byte {end} and the file at {source.nbytes}: it is cut short"
        raise CorruptCheckpointError(source.path, reason)
    if end < source.nbytes:
        reason = f"{source.nbytes - end} bytes after the last tensor belong to no tensor"
        raise CorruptCheckpointError(source.path, reason)


def _versions(
    path: Location, metadata: Mapping[str, str], limits: Limits
) -> tuple[dict[str, int | None] | None, tuple[Skipped, ...]]:
    """Return the module versions written by ckptool; other content is reported as skipped."""
    if VERSIONS not in metadata:
        return None, ()
    try:
        versions, rest = decode(path, metadata[VERSIONS].encode(), limits, VERSIONS)
    except CorruptCheckpointError as error:
        return None, (Skipped("module versions", error.reason),)
    if rest or not all(value is None or type(value) is int for value in versions.values()):
        return None, (Skipped("module versions", f"{VERSIONS} does not map prefixes to numbers"),)
    return versions, ()


def _check_no_zip(source: Source) -> None:
    """Raise CorruptCheckpointError if the tail is a zip archive: zip readers would open that."""
    tail = source.tail(_END_OF_ZIP_BYTES + _LONGEST_COMMENT)
    for found in re.finditer(rb"PK\x05\x06(?=.{18})", tail, re.DOTALL):
        end = source.nbytes - len(tail) + found.start()
        size, offset = struct.unpack_from("<II", tail, found.start() + 12)
        zip64 = tail[max(0, found.start() - 20) : found.start()].startswith(b"PK\x06\x07")
        if zip64 or any(_is_directory(source, at) for at in (end - size, offset)):
            reason = "is a safetensors file and a zip archive at once: loaders disagree about it"
            raise CorruptCheckpointError(source.path, reason)


def _is_directory(source: Source, at: int) -> bool:
    return 0 <= at <= source.nbytes - 4 and source.read(at, 4) == b"PK\x01\x02"


def _check_no_pickle(source: Source, limits: Limits) -> None:
    """Raise CorruptCheckpointError if the header is also a dangerous pickle for torch.load."""
    head = source.head(_PICKLE_START)
    if head[0] not in _OPCODES:
        return
    from ckptool.formats.pickles import dangerous, is_settled, scan

    if not is_settled(head, limits):
        head = source.head(_PICKLE_HEAD)
    if dangerous(scan(head, limits)):
        reason = "is a safetensors file and a pickle at once: loading it as a pickle runs code"
        raise CorruptCheckpointError(source.path, reason)

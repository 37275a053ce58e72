"""safetensors file -> Checkpoint: parses and validates the header; reads no tensor data."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import accumulate
from math import prod
from operator import mul
from types import MappingProxyType
from typing import Final, TypeGuard

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.contents.collector import fingerprint_metadata
from ckptool.formats.files.gc_pause import pause_gc
from ckptool.formats.files.lookalikes import check_no_archive
from ckptool.formats.files.source import ByteSource
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.formats.strict_json import (
    JsonReader,
    decode_object,
    describe_type,
    format_value,
    quote_text,
)
from ckptool.locations import Location
from ckptool.model import (
    DTYPE_BITS,
    Checkpoint,
    Container,
    Skipped,
    Span,
    StateDict,
    StorageInfo,
    TensorInfo,
    contiguous_stride,
)

TORCH_DTYPES: Final[Mapping[str, str]] = MappingProxyType(
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

VERSIONS_KEY: Final = "ckptool.versions"
"""`__metadata__` key with the module versions of `state_dict._metadata`, as JSON."""

_LENGTH_BYTES = 8
_MAX_NUMBER = 2**63 - 1
_BYTES_BEFORE_BRACE = frozenset([b" ", b"\t", b"\r", b"\n", b"\xef"])
"""Blanks, and the first byte of a UTF-8 byte-order mark."""
_PICKLE_OPCODES = frozenset(
    b"().012BCFGIJKLMNQRSTUVX]abcdeghijlopqrstu}" + bytes(range(0x80, 0x99))
)
"""Without "P", a persistent id as text, at which torch.load and pickle.load stop: one header in 32
begins with it, and what follows is read up to the first newline among the values of tensors."""
_PICKLE_START_BYTES = 1 << 12
"""Bytes that nearly always suffice to see that a header is no pickle."""
_PICKLE_GROWTH = 16
_MAX_LISTED = 8
_MAX_DIGITS: Final = 18
"""Digits of a number that is surely below `_MAX_NUMBER`."""
_NUMBER: Final = rf"(?:0|[1-9][0-9]{{0,{_MAX_DIGITS - 1}}})"
_MAX_PLAIN_RANK: Final = 16
_PLAIN_ENTRY_PATTERN: Final = re.compile(
    rf'\{{"dtype":"({"|".join(TORCH_DTYPES)})",'
    rf'"shape":\[((?:{_NUMBER}(?:,{_NUMBER}){{0,{_MAX_PLAIN_RANK - 1}}})?)\],'
    rf'"data_offsets":\[({_NUMBER}),({_NUMBER})\]\}}'
)
"""A tensor's entry as safetensors writes it."""
_PLAIN_ENTRY_LENGTH: Final = 512
"""Characters that such an entry does not exceed."""


class _EntryError(Exception):
    """A tensor entry is invalid; the caller adds the tensor's name."""


_METADATA_PLACE: Final = "__metadata__.{name}"


def matches(source: ByteSource) -> bool:
    """Whether it starts with a header length and a JSON object.

    Files truncated inside the header, or with blanks before it, match too and fail in `read`.
    """
    head = source.read_head(_LENGTH_BYTES + 1)
    length, first_byte = int.from_bytes(head[:_LENGTH_BYTES], "little"), head[_LENGTH_BYTES:]
    is_plausible = length <= max(DEFAULT_LIMITS.header_bytes, source.nbytes - _LENGTH_BYTES)
    return is_plausible and (
        first_byte == b"{" or (length > 0 and first_byte in _BYTES_BEFORE_BRACE)
    )


def read(source: ByteSource, limits: Limits) -> Checkpoint:
    """Describe a safetensors file.

    Raises:
        CorruptCheckpointError: it violates the format, or is also a zip archive or a pickle.
    """
    with pause_gc():
        metadata, tensors = _read_header(source, limits)
        start = _LENGTH_BYTES + _read_length(source)
        _check_spans_cover(source, start, tensors.values())
    check_no_archive(source, "a safetensors file")
    _check_no_pickle(source, limits)
    versions, skipped = _read_versions(source.path, metadata, limits)
    return Checkpoint(
        path=source.path,
        container=Container.SAFETENSORS,
        nbytes=source.nbytes,
        states=(StateDict("", tensors, versions=versions),),
        metadata=metadata,
        skipped=skipped,
        contents=fingerprint_metadata(metadata, _METADATA_PLACE) if limits.contents else {},
    )


def _read_header(
    source: ByteSource, limits: Limits
) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Return `__metadata__` and the tensors, in header order."""
    length = _read_length(source)
    if length > limits.header_bytes:
        reason = f"the header claims {length} bytes; the format allows {limits.header_bytes}"
        raise CorruptCheckpointError(source.path, reason)
    if source.read(_LENGTH_BYTES, length and 1) != b"{":
        raise CorruptCheckpointError(source.path, "the header does not begin with a brace")
    start = _LENGTH_BYTES + length
    source.prefetch([(0, start)])
    metadata: dict[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    header = JsonReader(
        source.path,
        lambda offset, nbytes: source.read(_LENGTH_BYTES + offset, nbytes),
        length,
        limits,
        "the header",
    )
    is_usual = (
        limits.entry_bytes >= _PLAIN_ENTRY_LENGTH
        and limits.json_digits >= _MAX_DIGITS
        and limits.rank >= _MAX_PLAIN_RANK
    )
    for name in header.iter_keys():
        if name == "__metadata__":
            metadata = _check_metadata(source.path, header.read_value(limits.metadata_bytes))
        else:
            match = header.match_value(_PLAIN_ENTRY_PATTERN) if is_usual else None
            entry = match or header.read_value(limits.entry_bytes)
            tensors[name] = _build_tensor(source.path, name, entry, start, limits)
    if trailing_text := header.read_remaining(" "):
        reason = f"{quote_text(trailing_text)} follows the header's JSON; only spaces are allowed"
        raise CorruptCheckpointError(source.path, reason)
    return metadata, tensors


def _read_length(source: ByteSource) -> int:
    return int.from_bytes(source.read(0, _LENGTH_BYTES), "little")


def _check_metadata(path: Location, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise CorruptCheckpointError(path, f"__metadata__ is {describe_type(value)}, not an object")
    for key, text in value.items():
        if not isinstance(text, str):
            reason = (
                f"__metadata__ has {describe_type(text)} under {quote_text(key)}; only strings are"
                " allowed"
            )
            raise CorruptCheckpointError(path, reason)
    return value


def _build_tensor(
    path: Location, name: str, entry: object, start: int, limits: Limits
) -> TensorInfo:
    try:
        code, shape, begin, end = _read_fields(entry, limits)
        _check_nbytes(code, shape, end - begin)
    except _EntryError as error:
        raise CorruptCheckpointError(path, f"tensor {quote_text(name)}: {error}") from error
    dtype, shape = _convert_to_torch(code, shape)
    return TensorInfo(
        key=name,
        shape=shape,
        dtype=dtype,
        stride=contiguous_stride(shape),
        storage_offset=0,
        storage=StorageInfo(name, end - begin, span=Span(path, start + begin, end - begin)),
    )


def _read_fields(entry: object, limits: Limits) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape, begin and end of a value of JSON, or of a `_PLAIN_ENTRY_PATTERN`.

    Raises:
        _EntryError: it is invalid.
    """
    if isinstance(entry, re.Match):
        code, sizes, *offsets = entry.groups()
        shape, (begin, end) = _parse_sizes(sizes), map(int, offsets)
    else:
        code, shape, begin, end = _validate_fields(entry, limits)
    if begin > end:
        offsets_text = _format_numbers([begin, end])
        raise _EntryError(f"its data_offsets are {offsets_text}, not a begin and an end")
    return code, shape, begin, end


@lru_cache(maxsize=4096)
def _parse_sizes(sizes: str) -> tuple[int, ...]:
    return tuple(map(int, sizes.split(","))) if sizes else ()


def _validate_fields(entry: object, limits: Limits) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict):
        raise _EntryError(f"it is {describe_type(entry)} instead of an object")
    try:
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    except KeyError as error:
        raise _EntryError(f"it has no {error.args[0]}") from error
    if not isinstance(code, str) or code not in TORCH_DTYPES:
        raise _EntryError(
            f"its dtype is {format_value(code)}; safetensors has {', '.join(TORCH_DTYPES)}"
        )
    if not _is_natural_list(shape):
        raise _EntryError(f"its shape is {_format_numbers(shape)}, not a list of sizes")
    if len(shape) > limits.rank:
        raise _EntryError(f"it has {len(shape)} dimensions; at most {limits.rank} are supported")
    if not _is_natural_list(offsets) or len(offsets) != 2:
        raise _EntryError(
            f"its data_offsets are {_format_numbers(offsets)}, not a begin and an end"
        )
    return code, tuple(shape), offsets[0], offsets[1]


def _is_natural_list(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list):
        return False
    for number in value:  # noqa: SIM110 - a generator would double the time of it all
        if type(number) is not int or not 0 <= number <= _MAX_NUMBER:
            return False
    return True


def _format_numbers(value: object) -> str:
    if isinstance(value, list) and len(value) <= _MAX_LISTED:
        return f"[{', '.join(map(format_value, value))}]"
    return format_value(value)


def _check_nbytes(code: str, shape: tuple[int, ...], nbytes: int) -> None:
    bits = prod(shape) * DTYPE_BITS[TORCH_DTYPES[code]]
    if bits != nbytes * 8:
        expected = f"{bits // 8} bytes" if bits % 8 == 0 else f"{bits} bits"
        raise _EntryError(f"{code} {list(shape)} takes {expected} but has {nbytes}")
    if bits == 0 and max(accumulate(shape, mul)) > _MAX_NUMBER:
        raise _EntryError(f"its shape {list(shape)} overflows")


def _convert_to_torch(code: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return torch dtype and shape; F4 with an even last dimension becomes float4_e2m1fn_x2."""
    if code == "F4" and shape and shape[-1] % 2 == 0:
        return "float4_e2m1fn_x2", (*shape[:-1], shape[-1] // 2)
    return TORCH_DTYPES[code], shape


def _check_spans_cover(source: ByteSource, start: int, tensors: Iterable[TensorInfo]) -> None:
    """Raise CorruptCheckpointError unless the tensors cover the data exactly, without overlap."""
    spans = [
        (tensor.storage.span, tensor.key)
        for tensor in tensors
        if tensor.storage and tensor.storage.span
    ]
    spans.sort(key=lambda pair: (pair[0].offset, pair[0].nbytes))
    end, previous_key = start, ""
    for span, key in spans:
        if span.offset < end:
            reason = f"tensors {quote_text(previous_key)} and {quote_text(key)} share bytes"
            raise CorruptCheckpointError(source.path, reason)
        if span.offset > end:
            reason = (
                f"{span.offset - end} bytes before tensor {quote_text(key)} do not belong to a "
                "tensor"
            )
            raise CorruptCheckpointError(source.path, reason)
        end, previous_key = span.offset + span.nbytes, key
    if end > source.nbytes:
        reason = f"its tensors end at byte {end} and the file at {source.nbytes}: it is truncated"
        raise CorruptCheckpointError(source.path, reason)
    if end < source.nbytes:
        reason = f"{source.nbytes - end} bytes after the last tensor do not belong to a tensor"
        raise CorruptCheckpointError(source.path, reason)


def _read_versions(
    path: Location, metadata: Mapping[str, str], limits: Limits
) -> tuple[dict[str, int | None] | None, tuple[Skipped, ...]]:
    """Return the module versions written by ckptool; other content is reported as skipped."""
    if VERSIONS_KEY not in metadata:
        return None, ()
    try:
        versions, trailing_bytes = decode_object(
            path, metadata[VERSIONS_KEY].encode(), limits, VERSIONS_KEY
        )
    except CorruptCheckpointError as error:
        return None, (Skipped("module versions", error.reason),)
    if trailing_bytes or not all(
        value is None or type(value) is int for value in versions.values()
    ):
        return None, (
            Skipped("module versions", f"{VERSIONS_KEY} does not map prefixes to numbers"),
        )
    return versions, ()


def _check_no_pickle(source: ByteSource, limits: Limits) -> None:
    """Raise CorruptCheckpointError if the file is also a pickle for torch.load.

    A pickle can skip what it likes and go on behind the header: it is followed to its end.
    """
    head = source.read_head(_PICKLE_START_BYTES)
    if head[0] not in _PICKLE_OPCODES:
        return
    from ckptool.formats.pickle.reader import is_complete_or_broken, scan_globals, select_unsafe

    nbytes = _PICKLE_START_BYTES
    while not is_complete_or_broken(head, limits) and nbytes < source.nbytes:
        nbytes *= _PICKLE_GROWTH
        if nbytes > limits.pickle_bytes:
            reason = (
                "is a safetensors file that could also be a pickle, whose end is too far away to "
                "check"
            )
            raise CorruptCheckpointError(source.path, reason)
        head = source.read_head(nbytes)
    if select_unsafe(scan_globals(head, limits)):
        reason = "is both a safetensors file and a pickle: loading it as a pickle runs code"
        raise CorruptCheckpointError(source.path, reason)

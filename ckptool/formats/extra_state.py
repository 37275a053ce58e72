"""Checkpoint -> the same with the globals of pickles that its tensors of bytes hold.

`set_extra_state` of several libraries unpickles what `_extra_state` holds: a tensor, of uint8 as
a rule, in any container. Tensors of bytes, and storages of bytes that only an attribute or
`_metadata` refers to, are searched where they begin.
"""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.formats.files.byte_strings import identify_packed_bytes, may_be_pickle
from ckptool.formats.files.source import ByteSource, open_source
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.global_uses import find_global_uses
from ckptool.formats.pickle.reader import (
    is_complete_or_broken,
    parse_pickle,
    scan_globals,
    select_unsafe,
)
from ckptool.locations import Location, RemotePath
from ckptool.model import (
    BYTE_DTYPES,
    Checkpoint,
    GlobalUse,
    Skipped,
    Span,
    TensorInfo,
    join_key,
)
from ckptool.phrases import pluralize

_KEY: Final = "_extra_state"
_MAX_BYTES: Final = 64 << 20
"""Bytes of one such tensor that are searched."""
_MAX_GATHERED_BYTES: Final = 4 << 20
"""Bytes of one whose elements are not adjacent."""
_HEAD_BYTES: Final = 1 << 14
"""Bytes that tell numbers from a pickle: numbers break off within a few opcodes."""
_REMOTE_HEAD_BYTES: Final = 512
_MAX_REMOTE: Final = 1000
"""Tensors of one remote checkpoint that are searched: each takes a request."""


class _SearchedBytes(Struct, frozen=True):
    """A tensor of bytes, extra state, or a storage of bytes: where a pickle may begin."""

    at: str
    span: Span | None
    """None where the bytes are compressed, or not adjacent."""
    is_extra_state: bool = False
    view: TensorInfo | None = None
    """A tensor of bytes whose elements are not adjacent in `span`, that of its storage."""


def add_extra_state(checkpoint: Checkpoint, limits: Limits) -> Checkpoint:
    """Return `checkpoint` with the unsafe globals of pickles in its tensors of bytes."""
    uses: list[GlobalUse] = []
    unread: list[Skipped] = []
    skipped: list[Skipped] = []
    by_path: dict[Location | None, list[_SearchedBytes]] = {}
    for searched in _iter_searched(checkpoint):
        path = None if searched.span is None else searched.span.path
        by_path.setdefault(path, []).append(searched)
    for path, items in by_path.items():
        if path is None:
            reason = "its bytes are compressed or not adjacent"
            unread += (Skipped(f"`{item.at}`", reason) for item in items if item.is_extra_state)
            continue
        chosen = items
        if isinstance(path, RemotePath):
            chosen = _select_remote(items, limits)
            if count := len(items) - len(chosen):
                reason = "the file is remote, and each takes a request; download it first"
                left_out = Skipped(f"pickles in {pluralize(count, 'tensor')} of bytes", reason)
                (unread if limits.search_remote else skipped).append(left_out)
        if chosen:
            _search_file(path, chosen, limits, uses, unread)
    if not (uses or unread or skipped):
        return checkpoint
    return replace(
        checkpoint,
        globals=(*checkpoint.globals, *dict.fromkeys(uses)),
        unread=(*checkpoint.unread, *unread),
        skipped=(*checkpoint.skipped, *skipped),
    )


def _iter_searched(checkpoint: Checkpoint) -> Iterator[_SearchedBytes]:
    """Yield what is searched; each place of a file once."""
    starts: set[tuple[Location, int]] = set()
    for state in checkpoint.states:
        for key, tensor in state.tensors.items():
            place, is_extra_state = join_key(state.at, key), _is_extra_state(key)
            for part in _list_strided(tensor):
                if 0 in part.shape or not (is_extra_state or part.dtype in BYTE_DTYPES):
                    continue
                span, view = part.span, None
                if span is None and part.dtype in BYTE_DTYPES and part.storage is not None:
                    span, view = part.storage.span, part
                if span is not None and view is None:
                    starts.add((span.path, span.offset))
                yield _SearchedBytes(place, span, is_extra_state, view)
    for place, storage in checkpoint.byte_storages.items():
        span = storage.span
        if span is not None and span.nbytes and (span.path, span.offset) not in starts:
            starts.add((span.path, span.offset))
            yield _SearchedBytes(place, span)


def _list_strided(tensor: TensorInfo) -> list[TensorInfo]:
    """Return the tensor, or those that it is made of: values, indices, chunks."""
    if not tensor.parts:
        return [tensor]
    return [part for component in tensor.parts for part in _list_strided(component.tensor)]


def _is_extra_state(key: str) -> bool:
    return key.endswith(_KEY)


def _select_remote(items: list[_SearchedBytes], limits: Limits) -> list[_SearchedBytes]:
    """Return what is searched in a remote file: all extra state, in a gate the rest as well."""
    rest = [item for item in items if not item.is_extra_state]
    extra_states = [item for item in items if item.is_extra_state]
    return extra_states + (rest[:_MAX_REMOTE] if limits.search_remote else [])


def _search_file(
    path: Location,
    items: list[_SearchedBytes],
    limits: Limits,
    uses: list[GlobalUse],
    unread: list[Skipped],
) -> None:
    """Search the tensors and storages that one file holds."""
    with open_source(path) as source:
        head_nbytes = _REMOTE_HEAD_BYTES if source.is_remote else _HEAD_BYTES
        spans = [item.span for item in items if item.span is not None]
        source.prefetch((span.offset, min(head_nbytes, span.nbytes)) for span in spans)
        unread += (
            Skipped(f"`{item.at}`", reason)
            for item in items
            if (reason := _search_bytes(source, item, head_nbytes, limits, uses))
        )


def _search_bytes(
    source: ByteSource,
    item: _SearchedBytes,
    head_nbytes: int,
    limits: Limits,
    uses: list[GlobalUse],
) -> str:
    """Add the globals of a pickle to `uses`; return why it was not looked at, or ""."""
    data = _read_bytes(source, item, head_nbytes)
    if item.is_extra_state or not _is_broken(data, limits):
        limit = _MAX_GATHERED_BYTES if item.view is not None else _MAX_BYTES
        nbytes = _count_bytes(item)
        if nbytes > limit:
            return f"it has {nbytes} bytes, more than the search limit"
        data = _read_bytes(source, item, nbytes)
    if packed := identify_packed_bytes(data):
        return f"it {packed}"
    if may_be_pickle(data):
        names = select_unsafe(scan_globals(data, limits))
        uses += (replace(use, at=item.at) for use in find_global_uses(names))
    return ""


def _count_bytes(item: _SearchedBytes) -> int:
    if item.view is not None:
        return item.view.numel
    return item.span.nbytes if item.span is not None else 0


def _read_bytes(source: ByteSource, item: _SearchedBytes, nbytes: int) -> bytes:
    """Return the first `nbytes` bytes, in the order of the elements."""
    if item.span is None:
        return b""
    if item.view is None:
        return source.read(item.span.offset, min(nbytes, item.span.nbytes))
    positions = _list_positions(item.view, min(nbytes, item.view.numel))
    first, last = min(positions), max(positions)
    data = source.read(item.span.offset + first, last + 1 - first)
    return bytes(data[position - first] for position in positions)


def _list_positions(view: TensorInfo, count: int) -> list[int]:
    """Return the places in its storage of the first `count` elements of a tensor of bytes."""
    positions = [view.storage_offset]
    for size, stride in zip(reversed(view.shape), reversed(view.stride), strict=True):
        steps = min(size, -(-count // len(positions)))
        positions = [step * stride + position for step in range(steps) for position in positions]
    return positions[:count]


def _is_broken(head: bytes, limits: Limits) -> bool:
    """Whether no pickle begins with `head`, whatever follows."""
    return is_complete_or_broken(head, limits) and bool(parse_pickle(head, limits).error)

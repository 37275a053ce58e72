"""Checkpoint -> the same with the globals of pickles that its tensors of bytes hold.

`set_extra_state` of several libraries unpickles what `_extra_state` holds: a tensor, of uint8 as
a rule, in any container. Tensors of bytes, and storages of bytes that only an attribute or
`_metadata` refers to, are searched where they begin.
"""

from collections.abc import Hashable, Iterator, Sequence
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
_MAX_TOTAL_BYTES: Final = 256 << 20
"""Bytes of all of them, heads apart: views of one storage may be many."""
_MAX_GATHERED_BYTES: Final = 4 << 20
"""Elements of one whose elements are not adjacent; each counts for `_GATHER_COST` bytes."""
_GATHER_COST: Final = 64
_MAX_SPREAD_BYTES: Final = 64 << 20
"""Bytes of a storage between the first and the last element that is gathered."""
_GATHERED_HEAD_BYTES: Final = 256
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
            with open_source(path) as source:
                search = _Search(source, limits)
                unread += search.search_all(chosen)
                uses += search.uses
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
    visited_places: set[Hashable] = set()
    for state in checkpoint.states:
        for key, tensor in state.tensors.items():
            place, is_extra_state = join_key(state.at, key), _is_extra_state(key)
            for part in _list_strided(tensor):
                if 0 in part.shape or not (is_extra_state or part.dtype in BYTE_DTYPES):
                    continue
                span, view = part.span, None
                if span is None and part.storage is not None and _is_byte_view(part):
                    span, view = part.storage.span, part
                place_in_file = _identify_place(span, view)
                if place_in_file is None or place_in_file not in visited_places:
                    visited_places.add(place_in_file)
                    yield _SearchedBytes(place, span, is_extra_state, view)
    for place, storage in checkpoint.byte_storages.items():
        span = storage.span
        if span is not None and span.nbytes and _identify_place(span, None) not in visited_places:
            yield _SearchedBytes(place, span)


def _is_byte_view(tensor: TensorInfo) -> bool:
    return tensor.layout == "strided" and tensor.dtype in BYTE_DTYPES


def _identify_place(span: Span | None, view: TensorInfo | None) -> Hashable:
    """Return what is the same for two that begin at one place of a file; None without one."""
    if span is None:
        return None
    if view is None:
        return span.path, span.offset, span.nbytes
    return span.path, span.offset, view.storage_offset, view.shape, view.stride


def _list_strided(tensor: TensorInfo) -> list[TensorInfo]:
    """Return the tensor, or those that it is made of: values, indices, chunks."""
    if not tensor.parts:
        return [tensor]
    return [part for component in tensor.parts for part in _list_strided(component.tensor)]


def _is_extra_state(key: str) -> bool:
    return key.endswith(_KEY)


def _select_remote(items: list[_SearchedBytes], limits: Limits) -> list[_SearchedBytes]:
    """Return what is searched in a remote file: all extra state, in a gate the rest as well."""
    byte_items = [item for item in items if not item.is_extra_state]
    extra_states = [item for item in items if item.is_extra_state]
    return extra_states + (byte_items[:_MAX_REMOTE] if limits.search_remote else [])


class _Search:
    """Searches the tensors and storages of one file."""

    def __init__(self, source: ByteSource, limits: Limits) -> None:
        self.uses: list[GlobalUse] = []
        self._source = source
        self._limits = limits
        self._remaining_nbytes = _MAX_TOTAL_BYTES
        self._head_nbytes = _REMOTE_HEAD_BYTES if source.is_remote else _HEAD_BYTES

    def search_all(self, items: Sequence[_SearchedBytes]) -> list[Skipped]:
        """Add to `uses`; return what was not looked at."""
        spans = [item.span for item in items if item.span is not None and item.view is None]
        self._source.prefetch((span.offset, min(self._head_nbytes, span.nbytes)) for span in spans)
        return [Skipped(f"`{item.at}`", reason) for item in items if (reason := self._search(item))]

    def _search(self, item: _SearchedBytes) -> str:
        """Add the globals of a pickle to `uses`; return why it was not looked at, or ""."""
        head_nbytes = self._head_nbytes if item.view is None else _GATHERED_HEAD_BYTES
        data = self._read(item, head_nbytes)
        if data is None:
            return "its elements are far apart in the file"
        if item.is_extra_state or not _is_broken(data, self._limits):
            nbytes = _count_bytes(item)
            cost = nbytes if item.view is None else nbytes * _GATHER_COST
            limit = _MAX_BYTES if item.view is None else _MAX_GATHERED_BYTES
            if nbytes > limit or cost > self._remaining_nbytes:
                return f"it has {nbytes} bytes, more than the search limit"
            self._remaining_nbytes -= cost
            data = self._read(item, nbytes)
            if data is None:
                return "its elements are far apart in the file"
        if packed := identify_packed_bytes(data):
            return f"it {packed}"
        if may_be_pickle(data):
            names = select_unsafe(scan_globals(data, self._limits))
            self.uses += (replace(use, at=item.at) for use in find_global_uses(names))
        return ""

    def _read(self, item: _SearchedBytes, nbytes: int) -> bytes | None:
        """Return the first `nbytes` bytes in the order of elements; None if they are far apart."""
        if item.span is None:
            return b""
        if item.view is None:
            return self._source.read(item.span.offset, min(nbytes, item.span.nbytes))
        positions = _list_positions(item.view, min(nbytes, item.view.numel))
        first, last = min(positions), max(positions)
        start, spread = item.span.offset, last + 1 - first
        is_head = len(positions) <= _GATHERED_HEAD_BYTES
        if spread <= (_HEAD_BYTES if is_head or self._source.is_remote else _MAX_SPREAD_BYTES):
            data = self._source.read(start + first, spread)
            return bytes(data[position - first] for position in positions)
        if is_head and not self._source.is_remote:
            return b"".join(self._source.read(start + position, 1) for position in positions)
        return None


def _count_bytes(item: _SearchedBytes) -> int:
    if item.view is not None:
        return item.view.numel
    return item.span.nbytes if item.span is not None else 0


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

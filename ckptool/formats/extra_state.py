"""Checkpoint -> the same with the globals of pickles that its tensors of bytes hold.

`set_extra_state` of several libraries unpickles what `_extra_state` holds: a tensor, of uint8 as
a rule, in any container. Such tensors are searched; they are few and small.
"""

from typing import Final

from msgspec.structs import replace

from ckptool.formats.files.byte_strings import identify_packed_bytes, may_be_pickle
from ckptool.formats.files.source import open_source
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.global_uses import find_global_uses
from ckptool.formats.pickle.reader import (
    is_complete_or_broken,
    parse_pickle,
    scan_globals,
    select_unsafe,
)
from ckptool.locations import RemotePath
from ckptool.model import Checkpoint, GlobalUse, Skipped, Span, TensorInfo, join_key

_KEY: Final = "_extra_state"
_BYTE_DTYPES: Final = frozenset({"uint8", "int8"})
_MAX_BYTES: Final = 64 << 20
"""Bytes of one such tensor that are searched."""
_HEAD_BYTES: Final = 1 << 14
"""Bytes that tell numbers from a pickle: numbers break off within a few opcodes."""


def add_extra_state(checkpoint: Checkpoint, limits: Limits) -> Checkpoint:
    """Return `checkpoint` with the unsafe globals of pickles in its tensors of bytes."""
    uses: list[GlobalUse] = []
    unread: list[Skipped] = []
    for state in checkpoint.states:
        for key, tensor in state.tensors.items():
            if _is_searched(key, tensor):
                place = join_key(state.at, key)
                if reason := _search_tensor(tensor, place, limits, uses):
                    unread.append(Skipped(f"`{place}`", reason))
    if not uses and not unread:
        return checkpoint
    return replace(
        checkpoint,
        globals=(*checkpoint.globals, *dict.fromkeys(uses)),
        unread=(*checkpoint.unread, *unread),
    )


def _is_searched(key: str, tensor: TensorInfo) -> bool:
    """Whether a tensor is extra state, or of bytes."""
    is_bytes = tensor.dtype in _BYTE_DTYPES
    return 0 not in tensor.shape and (is_bytes or _is_extra_state(key))


def _is_extra_state(key: str) -> bool:
    return key.endswith(_KEY)


def _search_tensor(tensor: TensorInfo, at: str, limits: Limits, uses: list[GlobalUse]) -> str:
    """Add the globals of a pickle in `tensor` to `uses`; return why it was not looked at, or ""."""
    span, is_extra_state = tensor.span, _is_extra_state(at)
    if not is_extra_state and span is not None and isinstance(span.path, RemotePath):
        return ""  # a request for each tensor
    if span is None:
        return "its bytes are compressed or not adjacent" if is_extra_state else ""
    data = _read_span(span, _HEAD_BYTES)
    if is_extra_state or not _is_broken(data, limits):
        if span.nbytes > _MAX_BYTES:
            return f"it has {span.nbytes} bytes, more than the search limit"
        data = _read_span(span, span.nbytes)
    if packed := identify_packed_bytes(data):
        return f"it {packed}"
    if may_be_pickle(data):
        names = select_unsafe(scan_globals(data, limits))
        uses += (replace(use, at=at) for use in find_global_uses(names))
    return ""


def _is_broken(head: bytes, limits: Limits) -> bool:
    """Whether no pickle begins with `head`, whatever follows."""
    return is_complete_or_broken(head, limits) and bool(parse_pickle(head, limits).error)


def _read_span(span: Span, nbytes: int) -> bytes:
    with open_source(span.path) as source:
        return source.read(span.offset, min(nbytes, span.nbytes))

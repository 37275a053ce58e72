"""Checkpoint -> the same with the globals of pickles that its tensors of bytes hold.

`set_extra_state` of several libraries unpickles what `_extra_state` holds: a uint8 tensor, in any
container. Such tensors are searched; they are few and small.
"""

from typing import Final

from msgspec.structs import replace

from ckptool.formats.files.source import open_source
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.global_uses import find_global_uses
from ckptool.formats.pickle.reader import scan_globals, select_unsafe
from ckptool.locations import RemotePath
from ckptool.model import Checkpoint, GlobalUse, Skipped, Span, TensorInfo, join_key

_KEY: Final = "_extra_state"
_BYTE_DTYPES: Final = frozenset({"uint8", "int8"})
_MAX_BYTES: Final = 64 << 20
"""Bytes of one such tensor that are searched."""
_MAGIC_BYTES: Final = 4


def add_extra_state(checkpoint: Checkpoint, limits: Limits) -> Checkpoint:
    """Return `checkpoint` with the unsafe globals of pickles in its tensors of bytes."""
    uses: list[GlobalUse] = []
    unread: list[Skipped] = []
    for state in checkpoint.states:
        for key, tensor in state.tensors.items():
            if tensor.dtype in _BYTE_DTYPES and len(tensor.shape) == 1 and tensor.numel:
                reason = _search_tensor(tensor, join_key(state.at, key), limits, uses)
                if reason:
                    unread.append(Skipped(f"`{join_key(state.at, key)}`", reason))
    if not uses and not unread:
        return checkpoint
    return replace(
        checkpoint,
        globals=(*checkpoint.globals, *dict.fromkeys(uses)),
        unread=(*checkpoint.unread, *unread),
    )


def _search_tensor(tensor: TensorInfo, at: str, limits: Limits, uses: list[GlobalUse]) -> str:
    """Add the globals of a pickle in `tensor` to `uses`; return why it was not looked at, or ""."""
    span, is_extra_state = tensor.span, at.rpartition(".")[2] == _KEY
    if not is_extra_state and span is not None and isinstance(span.path, RemotePath):
        return ""  # a request for each tensor
    if span is None:
        return "its bytes are compressed or not adjacent" if is_extra_state else ""
    head = _read_span(span, _MAGIC_BYTES)
    if head == b"PK\x03\x04":
        return "it holds a zip archive, as torch.save writes them"
    if not is_extra_state and not (head[:1] == b"\x80" and 2 <= head[1:2][0] <= 5):
        return ""
    if span.nbytes > _MAX_BYTES:
        return f"it has {span.nbytes} bytes, more than are searched" if is_extra_state else ""
    names = select_unsafe(scan_globals(_read_span(span, span.nbytes), limits))
    uses += (replace(use, at=at) for use in find_global_uses(names))
    return ""


def _read_span(span: Span, nbytes: int) -> bytes:
    with open_source(span.path) as source:
        return source.read(span.offset, min(nbytes, span.nbytes))

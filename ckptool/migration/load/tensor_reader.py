"""TensorInfo -> torch.Tensor: a view of a mapped file where its bytes are there as torch has them.

What is not plain bytes (sparse, quantised, subclasses) is read by torch.load(weights_only=True),
which maps the file as well.
"""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from ckptool.errors import ReadError
from ckptool.locations import RemotePath
from ckptool.migration.load.file_copies import Chunk, ChunkedTensor, MappedFile
from ckptool.migration.load.mapped_files import MappedFiles
from ckptool.migration.source_guard import SourceGuard
from ckptool.model import DTYPE_BITS, Checkpoint, TensorComponent, TensorInfo
from ckptool.values.elements import unreadable_reason, unwrap_single_chunk
from ckptool.verification.loading.load_tensors import can_be_mapped, load_with_torch

_MIN_CHUNKED_NBYTES: Final = 1 << 16
"""Size below which putting chunks together in memory costs nothing."""


class TensorReader:
    """Makes the tensors of one state of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, at: str, source_guard: SourceGuard | None) -> None:
        """With a guard, a file that was changed is refused at each access."""
        self.chunked: list[ChunkedTensor] = []
        """Tensors of which `read_tensor` returned the stand-in."""
        self._checkpoint = checkpoint
        self._at = at
        self._files = MappedFiles(source_guard)
        self._torch_state: Mapping[str, Any] | None = None

    @property
    def files(self) -> tuple[MappedFile, ...]:
        """The files that were mapped so far."""
        return self._files.mapped

    def close(self) -> None:
        """Let go of the files; tensors that were made before stay as they are."""
        self._files.close()
        self._torch_state = None

    def read_tensor(
        self, info: TensorInfo, source_key: str, *, keeps_chunks: bool = False
    ) -> Tensor:
        """Return a new tensor; tensors that share a storage in the file share it here.

        Args:
            info: the tensor; its bytes may be in another file than the checkpoint's.
            source_key: its key in the state of the checkpoint, "" if it has none there.
            keeps_chunks: whether a large tensor in chunks is not put together in memory: returned
                is a stand-in on meta then, and its chunks are in `chunked`.

        Raises:
            ReadError: the reader is closed, or the file cannot be read.
        """
        self._require_open()
        if info.layout == "lazy":
            return UninitializedParameter(requires_grad=info.requires_grad)
        if not _is_plain(info):
            value = self.read_value(source_key, info.key)
            if not isinstance(value, Tensor):
                raise ReadError(self._checkpoint.path, f"`{info.key}` is not a tensor for torch")
            return value.detach()
        return self._read_dense(info, keeps_chunks=keeps_chunks)

    def read_value(self, source_key: str, name: str) -> Any:
        """Return what torch.load(weights_only=True) has at a key of the state.

        Raises:
            ReadError: torch refuses the file, or has nothing there.
        """
        self._require_open()
        if self._torch_state is None:
            mapped = can_be_mapped(self._checkpoint)
            self._torch_state = load_with_torch(self._checkpoint, self._at, mapped=mapped)
        if source_key not in self._torch_state:
            raise ReadError(self._checkpoint.path, f"torch does not find `{name}` in it")
        return self._torch_state[source_key]

    def _read_dense(self, info: TensorInfo, *, keeps_chunks: bool = False) -> Tensor:
        info = unwrap_single_chunk(info)
        dtype = _find_dtype(info.dtype)
        assert dtype is not None
        if info.parts or (keeps_chunks and not _is_aligned(info)):
            return self._read_chunks(info, dtype, keeps_chunks=keeps_chunks)
        whole = self._files.view_storage(info, dtype)
        if whole is not None:
            return whole
        if info.storage is None or not info.numel:
            return torch.empty_strided(info.shape, info.stride, dtype=dtype)
        storage = self._files.get_storage(info.storage, info.dtype)
        elements = torch.empty(0, dtype=dtype)
        try:
            return elements.set_(storage, info.storage_offset, info.shape, info.stride)
        except RuntimeError as error:
            reason = f"`{info.key}` does not fit in its storage: {error}"
            raise ReadError(self._checkpoint.path, reason) from error

    def _read_chunks(self, info: TensorInfo, dtype: torch.dtype, *, keeps_chunks: bool) -> Tensor:
        is_joined = not keeps_chunks or info.nbytes < _MIN_CHUNKED_NBYTES
        tensor = torch.empty(info.shape, dtype=dtype, device="cpu" if is_joined else "meta")
        parts = info.parts or (TensorComponent("", (0,) * len(info.shape), info),)
        chunked = ChunkedTensor(tensor, tuple(map(self._describe_chunk, parts)))
        if not is_joined:
            self.chunked.append(chunked)
            return tensor
        for place, chunk in chunked.list_places(tensor):
            place.copy_(chunk.read())
        return tensor

    def _describe_chunk(self, part: TensorComponent) -> Chunk:
        shape, read, span = (
            part.tensor.shape,
            partial(self._read_dense, part.tensor),
            part.tensor.span,
        )
        if span is None or not span.nbytes or isinstance(span.path, RemotePath):
            return Chunk(part.offsets, shape, read)
        return Chunk(part.offsets, shape, read, self._files.map_file(span), span.offset)

    def _require_open(self) -> None:
        if self._files.is_closed:
            raise ReadError(self._checkpoint.path, "was closed: open it again to read its tensors")


def _is_aligned(info: TensorInfo) -> bool:
    """Whether its bytes in the file can be those of a tensor, without a copy."""
    span = info.span
    return span is None or span.offset * 8 % DTYPE_BITS[info.dtype] == 0


def _is_plain(info: TensorInfo) -> bool:
    """Whether it is a dense tensor whose elements are whole bytes of files."""
    is_dense = info.layout in {"strided", "chunked"} and not info.wrapper
    return is_dense and _find_dtype(info.dtype) is not None and _has_bytes(info)


@cache
def _find_dtype(name: str) -> torch.dtype | None:
    """Return the dtype of a name without the prefix; None if this version of torch has none."""
    dtype = getattr(torch, name, None)
    return dtype if isinstance(dtype, torch.dtype) else None


def _has_bytes(info: TensorInfo) -> bool:
    if info.layout == "chunked":
        return not unreadable_reason(info)
    storage = info.storage
    is_whole_bytes = DTYPE_BITS.get(info.dtype, 1) % 8 == 0 and not info.dtype.startswith("q")
    return is_whole_bytes and (
        not info.numel
        or (storage is not None and (storage.span is not None or storage.content is not None))
    )

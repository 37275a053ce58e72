"""TensorInfo -> torch.Tensor: a view of a mapped file where its bytes are there as torch has them.

What is not plain bytes (sparse, quantised, subclasses) is read by torch.load(weights_only=True),
which maps the file as well.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from ckptool.errors import ReadError
from ckptool.migration.load.file_copies import MappedFile
from ckptool.migration.load.mapped_files import MappedFiles
from ckptool.migration.source_guard import SourceGuard
from ckptool.model import DTYPE_BITS, Checkpoint, TensorInfo
from ckptool.values.elements import unreadable_reason, unwrap_single_chunk
from ckptool.verification.load_tensors import can_be_mapped, load_with_torch


class TensorReader:
    """Makes the tensors of one state of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, at: str, source_guard: SourceGuard | None) -> None:
        """With a guard, a file that was changed is refused at each access."""
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

    def read_tensor(self, info: TensorInfo, source_key: str) -> Tensor:
        """Return a new tensor; tensors that share a storage in the file share it here.

        Args:
            info: the tensor; its bytes may be in another file than the checkpoint's.
            source_key: its key in the state of the checkpoint, "" if it has none there.

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
        return self._read_dense(info)

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

    def _read_dense(self, info: TensorInfo) -> Tensor:
        info = unwrap_single_chunk(info)
        dtype: torch.dtype = getattr(torch, info.dtype)
        if info.parts:
            return self._join_chunks(info, dtype)
        if info.storage is None or not info.numel:
            return torch.empty_strided(info.shape, info.stride, dtype=dtype)
        storage = self._files.get_storage(info.storage, info.dtype)
        elements = torch.empty(0, dtype=dtype)
        try:
            return elements.set_(storage, info.storage_offset, info.shape, info.stride)
        except RuntimeError as error:
            reason = f"`{info.key}` does not fit in its storage: {error}"
            raise ReadError(self._checkpoint.path, reason) from error

    def _join_chunks(self, info: TensorInfo, dtype: torch.dtype) -> Tensor:
        joined = torch.empty(info.shape, dtype=dtype)
        for part in info.parts:
            place = joined
            for dim, (start, size) in enumerate(zip(part.offsets, part.tensor.shape, strict=True)):
                place = place.narrow(dim, start, size)
            place.copy_(self._read_dense(part.tensor))
        return joined

    def _require_open(self) -> None:
        if self._files.is_closed:
            raise ReadError(self._checkpoint.path, "was closed: open it again to read its tensors")


def _is_plain(info: TensorInfo) -> bool:
    """Whether it is a dense tensor whose elements are whole bytes of files."""
    is_dense = info.layout in {"strided", "chunked"} and not info.wrapper
    has_dtype = isinstance(getattr(torch, info.dtype, None), torch.dtype)
    return is_dense and has_dtype and _has_bytes(info)


def _has_bytes(info: TensorInfo) -> bool:
    if info.layout == "chunked":
        return not unreadable_reason(info)
    storage = info.storage
    is_whole_bytes = DTYPE_BITS.get(info.dtype, 1) % 8 == 0 and not info.dtype.startswith("q")
    return is_whole_bytes and (
        not info.numel
        or (storage is not None and (storage.span is not None or storage.content is not None))
    )

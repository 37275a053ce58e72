"""Computed bytes -> Span of an anonymous file, so that every value is a span of a file."""

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Self

from ckptool.formats.files.shared_descriptors import SHARED_DESCRIPTORS
from ckptool.model import DTYPE_BITS, Span, StorageInfo, TensorInfo, contiguous_stride


class AnonymousFile:
    """A file without a name (memfd where available), deleted when it is closed."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            SHARED_DESCRIPTORS.discard(self._file.fileno())
            self._file.close()

    def add_tensor(self, key: str, dtype: str, shape: tuple[int, ...], data: bytes) -> TensorInfo:
        """Append a tensor's elements (little-endian, C order) and return its description.

        Raises:
            ValueError: the length of `data` does not fit dtype and shape.
        """
        span = self.add_bytes(data)
        storage = StorageInfo(f"memory {span.offset} {key}", len(data), span=span)
        info = TensorInfo(key, shape, dtype, contiguous_stride(shape), 0, storage)
        if info.numel * DTYPE_BITS[dtype] // 8 != len(data):
            raise ValueError(f"{len(data)} bytes are not a {dtype} {list(shape)}")
        return info

    def add_bytes(self, data: bytes) -> Span:
        """Append bytes, and return their span."""
        if self._file is None:
            if hasattr(os, "memfd_create"):
                self._file = os.fdopen(os.memfd_create("ckptool"), "w+b")
            else:
                self._file = TemporaryFile()  # noqa: SIM115 - closed with this object
            SHARED_DESCRIPTORS.add(self._file.fileno())
        self._file.write(data)
        self._file.flush()
        offset, self._size = self._size, self._size + len(data)
        return Span(Path(f"/dev/fd/{self._file.fileno()}"), offset, len(data))

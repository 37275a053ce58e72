"""Tensors whose bytes lie in files, and their descriptions: whole, in chunks, in layers."""

from itertools import product
from pathlib import Path

import torch
from msgspec.structs import replace

from ckptool.model import Span, StorageInfo, TensorComponent, TensorInfo


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.clone(memory_format=torch.contiguous_format).untyped_storage())


def described(path: Path, tensor: torch.Tensor, offset: int = 0, key: str = "t") -> TensorInfo:
    """Write a tensor's whole storage, and describe the tensor as a view of it."""
    data = bytes(tensor.untyped_storage())
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(offset)
        file.write(data)
    return TensorInfo(
        key=key,
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        stride=tensor.stride(),
        storage_offset=tensor.storage_offset(),
        storage=StorageInfo(key, len(data), span=Span(path, offset, len(data))),
    )


def big_endian(path: Path, tensor: torch.Tensor) -> TensorInfo:
    """Describe the tensor as a big-endian machine would have saved it."""
    info = described(path, tensor)
    word = tensor.dtype.itemsize // (2 if tensor.dtype.is_complex else 1)
    data = path.read_bytes()
    path.write_bytes(b"".join(data[n : n + word][::-1] for n in range(0, len(data), word)))
    return replace(info, storage=replace(info.storage, byteorder="big"))


def chunked(folder: Path, tensor: torch.Tensor, cuts: list[list[int]]) -> TensorInfo:
    """Describe a tensor that is saved in pieces: `cuts` are the starts in each dimension."""
    parts = []
    ends = [[*starts[1:], size] for starts, size in zip(cuts, tensor.shape, strict=True)]
    places = [list(zip(s, e, strict=True)) for s, e in zip(cuts, ends, strict=True)]
    for n, box in enumerate(product(*places)):
        piece = tensor[tuple(slice(a, b) for a, b in box)].clone()
        chunk = described(folder / f"{n}.distcp", piece, key=str(n))
        parts.append(TensorComponent("", tuple(a for a, _ in box), chunk))
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    return TensorInfo(
        "w", shape, dtype, tensor.stride(), 0, None, "chunked", parts=tuple(parts[::-1])
    )


def layered(folder: Path, layout: str = "sparse_coo", **parts: torch.Tensor) -> TensorInfo:
    folder.mkdir()
    held = tuple(
        TensorComponent(n, (), described(folder / n, part, key=n)) for n, part in parts.items()
    )
    return TensorInfo("w", (4,), "float32", (1,), 0, None, layout, parts=held)

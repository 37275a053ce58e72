"""Files that torch writes, what ckptool says of them, and the tensors that their spans hold."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ckptool.formats.files.source import open_source
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.formats.torch.legacy import read as read_legacy
from ckptool.formats.torch.zip_reader import read as read_zip
from ckptool.model import Checkpoint, TensorInfo


@contextmanager
def saved(obj: Any, **how: Any) -> Iterator[Path]:
    """Save `obj` as torch does, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.pt"
        torch.save(obj, path, **how)
        yield path


def describe(path: Path, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    with open_source(path) as source:
        return (read_zip if source.read_head(2) == b"PK" else read_legacy)(source, limits)


_FOLDER = tempfile.TemporaryDirectory()
_NUMBER = count()


def described(obj: Any, **how: Any) -> Checkpoint:
    """Return what ckptool says of `obj` once torch has saved it; the file stays for its bytes."""
    path = Path(_FOLDER.name) / f"{next(_NUMBER)}.pt"
    torch.save(obj, path, **how)
    return describe(path)


def content(tensor: TensorInfo) -> torch.Tensor:
    """Return the tensor that a description stands for, from the bytes of its storage alone."""
    assert tensor.storage is not None
    assert tensor.storage.span is not None
    span = tensor.storage.span
    data = bytearray(span.path.read_bytes()[span.offset : span.offset + span.nbytes])
    dtype = getattr(torch, tensor.dtype)
    if not data or 0 in tensor.shape:
        return torch.empty(tensor.shape, dtype=dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8).view(dtype)
    return flat.as_strided(tensor.shape, tensor.stride, tensor.storage_offset)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit: NaN and the small floats included."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if not one.numel():
        return True
    whole = [t.detach().clone(memory_format=torch.contiguous_format) for t in (one, other)]
    return torch.equal(*(t.reshape(-1).view(torch.uint8) for t in whole))

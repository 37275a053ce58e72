"""Files that torch and safetensors write, what ckptool says of them, and what their bytes hold."""

import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.files.source import open_source
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.formats.torch.legacy import read as read_legacy
from ckptool.formats.torch.zip_reader import read as read_zip
from ckptool.model import Checkpoint, TensorInfo


def save(path: Path, content: Any, **how: Any) -> Path:
    """Save `content` as torch does, and return the path."""
    torch.save(content, path, **how)
    return path


def save_dcp(content: Any, folder: Path) -> Path:
    """Save a distributed checkpoint from this process alone, and return its folder."""
    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process; `no_dist` came after torch 2.6
        checkpoint.save(content, checkpoint_id=folder)
    return folder


def needs_torch(version: str, reason: str) -> pytest.MarkDecorator:
    """Skip a test where torch is older than `version`, as "2.7"."""
    installed = tuple(map(int, torch.__version__.split(".")[:2]))
    wanted = tuple(map(int, version.split(".")))
    return pytest.mark.skipif(installed < wanted, reason=f"torch {version} or newer: {reason}")


@contextmanager
def saved_meanwhile(obj: Any, **how: Any) -> Iterator[Path]:
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
    return describe(save(Path(_FOLDER.name) / f"{next(_NUMBER)}.pt", obj, **how))


def corruption_reason(read: Callable[..., Any], *arguments: Any) -> str:
    """Return why `read` refuses a damaged file."""
    with pytest.raises(CorruptCheckpointError) as error:
        read(*arguments)
    return error.value.reason


def write_shards(
    folder: Path, *shards: dict[str, torch.Tensor], **metadata: object
) -> dict[str, str]:
    """Write each state_dict into a shard, and an index with `metadata`; return its weight_map."""
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for n, tensors in enumerate(shards, 1):
        name = f"model-{n:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": metadata, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


def rewrite_archive(path: Path, target: Path, change: dict[str, bytes | None]) -> Path:
    """Write the archive at `path` again with other members; None leaves one out."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as made:
        names = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
        for name, data in {**names, **change}.items():
            if data is not None:
                made.writestr(zipfile.ZipInfo(f"net/{name}"), data)
    return target


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

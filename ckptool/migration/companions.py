"""A sharded checkpoint's folder -> the files beside the shards that its readers need as well."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ckptool.formats import sharded_writer
from ckptool.model import Checkpoint

_WEIGHTS: Final = frozenset(
    {".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz"}
)
"""Suffixes of other copies of the state: they would be as they were, and so wrong."""


def companions(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """Return configuration, tokenizer and the like: the plain files beside the shards, by name.

    Raises:
        OSError: the folder cannot be listed.
    """
    path = checkpoint.path
    if not path.is_dir() and path.suffix != ".json":
        return ()
    folder = path if path.is_dir() else path.parent
    return tuple(sorted(file for file in folder.iterdir() if _belongs(file, checkpoint)))


def carry(files: Sequence[Path], folder: Path) -> None:
    """Copy the files into `folder`, or clone them: a link would let an edit change both.

    Raises:
        OSError: one cannot be written.
        ReadError: one cannot be read.
    """
    for file in files:
        sharded_writer.keep(file, folder / file.name, lambda _: None, link=False)


def _belongs(file: Path, checkpoint: Checkpoint) -> bool:
    if file.name.startswith(".") or file in checkpoint.files or not file.is_file():
        return False
    return file.suffix not in _WEIGHTS and not file.name.endswith(".index.json")

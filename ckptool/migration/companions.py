"""Sharded checkpoint -> sidecar files of its folder: configuration, tokenizer and the like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ckptool.formats import sharded_writer
from ckptool.formats.files import is_directory, names_in
from ckptool.locations import Location, RemotePath
from ckptool.model import Checkpoint

_WEIGHTS: Final = frozenset(
    {".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz"}
)
"""Suffixes of other copies of the weights, which are not copied: they would be outdated."""


def companions(checkpoint: Checkpoint) -> tuple[Location, ...]:
    """Return the plain files beside the shards (configuration, tokenizer), sorted by name.

    Empty for http(s) sources, whose folders cannot be listed.

    Raises:
        ReadError: the folder cannot be listed.
    """
    path = checkpoint.path
    inside = is_directory(path)
    if not inside and (path.suffix != ".json" or is_web(path)):
        return ()
    folder = path if inside else path.parent
    found = (folder / name for name in names_in(folder))
    return tuple(file for file in found if _belongs(file, checkpoint))


def is_web(path: Location) -> bool:
    """Return whether a location is an http(s) URL, whose folder cannot be listed."""
    return isinstance(path, RemotePath) and path.is_web


def carry(files: Sequence[Location], folder: Path) -> None:
    """Copy (or clone) the files into `folder`; never hard-link: an edit would change both.

    Raises:
        OSError: a file cannot be written.
        ReadError: a file cannot be read.
    """
    for file in files:
        sharded_writer.keep(file, folder / file.name, lambda _: None, link=False)


def _belongs(file: Location, checkpoint: Checkpoint) -> bool:
    if file.name.startswith(".") or file in checkpoint.files:
        return False
    if file.suffix in _WEIGHTS or file.name.endswith(".index.json"):
        return False
    return file.is_file() if isinstance(file, Path) else not is_directory(file)

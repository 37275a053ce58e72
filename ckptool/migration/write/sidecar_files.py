"""Sharded checkpoint -> sidecar files of its folder: configuration, tokenizer and the like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ckptool.formats.files.source import is_directory, list_names
from ckptool.formats.sharded import writer
from ckptool.locations import Location, RemotePath
from ckptool.model import Checkpoint

_WEIGHT_SUFFIXES: Final = frozenset(
    {".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz"}
)
"""Suffixes of other copies of the weights, which are not copied: they would be outdated."""


def list_sidecar_files(
    checkpoint: Checkpoint, source: Location | None = None
) -> tuple[Location, ...]:
    """Return the plain files beside the weights (configuration, tokenizer), sorted by name.

    Empty for http(s) sources, whose folders cannot be listed.

    Args:
        checkpoint: the weights.
        source: what the user named, which may be the folder of a single file; None for the weights.

    Raises:
        ReadError: the folder cannot be listed.
    """
    path = checkpoint.path
    if source is not None and source != path and is_directory(source):
        path = source
    is_folder = is_directory(path)
    if not is_folder and (path.suffix != ".json" or is_web_location(path)):
        return ()
    folder = path if is_folder else path.parent
    candidates = (folder / name for name in list_names(folder))
    return tuple(file for file in candidates if _is_sidecar_file(file, checkpoint))


def is_web_location(path: Location) -> bool:
    """Return whether a location is an http(s) URL, whose folder cannot be listed."""
    return isinstance(path, RemotePath) and path.is_web


def copy_sidecar_files(files: Sequence[Location], folder: Path) -> None:
    """Copy (or clone) the files into `folder`; never hard-link: an edit would change both.

    Raises:
        OSError: a file cannot be written.
        ReadError: a file cannot be read.
    """
    for file in files:
        writer.link_or_copy_file(file, folder / file.name, lambda _: None, link=False)


def _is_sidecar_file(file: Location, checkpoint: Checkpoint) -> bool:
    if file.name.startswith(".") or file in checkpoint.files:
        return False
    if file.suffix in _WEIGHT_SUFFIXES or file.name.endswith(".index.json"):
        return False
    return file.is_file() if isinstance(file, Path) else not is_directory(file)

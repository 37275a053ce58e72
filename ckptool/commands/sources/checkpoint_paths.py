"""Paths that a caller gives -> locations and checkpoints; what is no path is rejected."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ckptool.errors import UsageError
from ckptool.formats import open_stream
from ckptool.formats.limits import Limits
from ckptool.loaders.folder_weights import open_weights
from ckptool.locations import RemotePath, parse_location
from ckptool.model import Checkpoint
from ckptool.values.progress import start_step

PathLike = str | Path | RemotePath
"""A str may name a protocol: "s3://bucket/key"."""


def open_checkpoint_or_stdin(
    path: PathLike, limits: Limits, loader: str | None = None
) -> Checkpoint:
    """Describe the checkpoint at `path`; "-" is standard input.

    Of a framework's folder, the file is read that the framework would read.

    Raises:
        ReadError: it cannot be read.
        UsageError: `path` is not a path, or empty.
    """
    if str(require_path(path)) == "-":
        start_step("reading standard input")
        return open_stream(sys.stdin.buffer, limits)
    location = parse_location(path)
    start_step(f"reading {location.name}")
    return open_weights(location, limits, loader)


def require_path(path: object) -> PathLike:
    """Return a path; reject values that callers pass by mistake.

    Raises:
        UsageError: it is no path (a module, a state_dict), or "".
    """
    if not isinstance(path, PathLike):
        raise UsageError(
            f"a checkpoint is given by its path; {name_kind(path)} was given. A live module is "
            "module=..."
        )
    if str(path) == "":
        raise UsageError("the path of a checkpoint is empty")
    return path


def is_live(value: object) -> bool:
    """Whether a value is a live module or a mapping, where the path of a checkpoint may be too."""
    is_module = hasattr(value, "named_modules") and not isinstance(value, type)
    return is_module or isinstance(value, Mapping)


def list_paths(paths: object) -> list[PathLike]:
    """Return the paths of checkpoints that a caller gives: one, or several.

    Raises:
        UsageError: it is no path, and no list of paths.
    """
    if isinstance(paths, PathLike):
        return [paths]
    if is_live(paths) or not isinstance(paths, Iterable):
        return [require_path(paths)]
    return [require_path(path) for path in paths]


def name_kind(value: object) -> str:
    """Return the class of a value with its article: "a dict", "an OrderedDict"."""
    name = type(value).__name__
    return f"an {name}" if name[:1] in "AEIOUaeiou" else f"a {name}"


def require_local_path(path: PathLike) -> Path:
    """Return an output path as a local Path.

    Raises:
        UsageError: it is remote.
    """
    location = parse_location(path)
    if isinstance(location, RemotePath):
        reason = "remote outputs are not supported: write a local file and upload it"
        raise UsageError(f"{location}: {reason}")
    return location

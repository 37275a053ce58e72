"""Folder or pattern -> the checkpoints in it, by their names; no file is opened."""

import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final

from ckptool.errors import ReadError

_FILE_PATTERN: Final = r"(?i).+\.(?:safetensors|bin|pth?|pt2|ckpt)"
"""Names of files that are taken without having been named: `.pkl` and `.tar` are often others."""
_FOLDER_MARK_PATTERN: Final = r"\.metadata|.+\.(?:safetensors|bin|pth?)\.index(?:\.[\w-]+)?\.json"
"""Names that make one checkpoint of a folder: those of an index, and DCP's."""
_WEIGHTS_PATTERN: Final = (
    r"(?:model|pytorch_model|adapter_model|diffusion_pytorch_model)(?:-\d+-of-\d+)?\.\w+"
)
"""Weight files, whole or shards, beside which a folder's other files are no checkpoints."""
_TRAINING_STATE_PATTERN: Final = (
    r"(?:optimizer|scheduler|sampler|scaler|random_states|rng_state|training_args)(?:_\d+)?\.\w+"
)
"""What Trainer and accelerate's save_state write next to weights to resume from."""
_PASSED_OVER: Final = frozenset({"__pycache__", "node_modules", "site-packages"})
MAX_VISITED: Final = 200_000
"""Names that one pattern or folder may have below it."""
GLOB_CHARACTERS: Final = frozenset("*?[")


def is_pattern(text: str) -> bool:
    """Whether a text is a glob, and no plain path."""
    return bool(GLOB_CHARACTERS & set(text))


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder: itself if it is one, else files and folders below it.

    A folder with a single file is that checkpoint, and one with none is returned as it is: opening
    it gives the reason.

    Raises:
        ReadError: it has too many names below it, or cannot be listed.
    """
    matches = list(_walk(folder, "*", folder))
    is_single = len(matches) < 2 and all(path.parent == folder for path in matches)
    return [folder] if is_single else matches


def iter_matching_checkpoints(pattern: str, folder: Path) -> Iterator[Path]:
    """Yield the checkpoints below `folder` that a pattern of a configuration matches, in order.

    `*` matches "/" as well. A pattern that ends in a suffix of its own takes files of any kind.

    Raises:
        ReadError: it has too many names below it.
    """
    if not _is_relative(pattern):
        return
    if not is_pattern(pattern):
        if (folder / pattern).exists():
            yield folder / pattern
        return
    steps = PurePosixPath(pattern).parts[:-1]
    count = next((i for i, step in enumerate(steps) if is_pattern(step)), len(steps))
    yield from _walk(folder.joinpath(*steps[:count]), pattern, folder)


def _is_relative(pattern: str) -> bool:
    """Whether a name below a folder can match: names have no "./", no ".." and no "/" in front."""
    is_normal = os.path.normpath(pattern) == pattern
    return is_normal and not pattern.startswith(("/", "..")) and pattern != "."


def _walk(start: Path, pattern: str, folder: Path) -> Iterator[Path]:
    suffix = PurePosixPath(pattern).suffix
    is_any_kind = len(suffix) > 1 and not is_pattern(suffix)
    visited_count = 0
    for place, folder_names, file_names in os.walk(start):
        visited_count += len(folder_names) + len(file_names)
        if visited_count > MAX_VISITED:
            raise ReadError(start, f"has more than {MAX_VISITED:,} files: name a folder in it")
        directory = Path(place)
        folder_names[:] = [] if _is_environment(file_names) else _keep_visited(folder_names)
        files = file_names if is_any_kind else _list_checkpoint_names(file_names)
        matching = [
            directory / name
            for name in sorted(files)
            if fnmatchcase((directory / name).relative_to(folder).as_posix(), pattern)
        ]
        if _is_checkpoint_folder(file_names) and (
            matching or fnmatchcase(directory.relative_to(folder).as_posix(), pattern)
        ):
            yield directory
        else:
            yield from matching


def _keep_visited(names: Sequence[str]) -> list[str]:
    return sorted(name for name in names if name not in _PASSED_OVER and not name.startswith("."))


def _is_environment(file_names: Sequence[str]) -> bool:
    return "pyvenv.cfg" in file_names


def _list_checkpoint_names(file_names: Sequence[str]) -> list[str]:
    """Return the names of checkpoints; next to weights, without the state of their training."""
    names = [name for name in file_names if _is_checkpoint_name(name)]
    if not any(re.fullmatch(_WEIGHTS_PATTERN, name) for name in file_names):
        return names
    return [name for name in names if not re.fullmatch(_TRAINING_STATE_PATTERN, name)]


def _is_checkpoint_name(name: str) -> bool:
    return bool(re.fullmatch(_FILE_PATTERN, name)) or name == ".metadata"


def _is_checkpoint_folder(file_names: Sequence[str]) -> bool:
    """Whether a folder is one checkpoint: it has an index, or weights beside a configuration."""
    has_mark = any(re.fullmatch(_FOLDER_MARK_PATTERN, name) for name in file_names)
    has_weights = any(re.fullmatch(_WEIGHTS_PATTERN, name) for name in file_names)
    return has_mark or (has_weights and any(name.endswith("config.json") for name in file_names))

"""Folder or pattern -> the checkpoints in it, by their names; no checkpoint is opened."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Final

from ckptool.errors import ReadError, describe_os_error
from ckptool.formats.files.source import list_names
from ckptool.formats.files.weight_names import is_index_name, is_weights_name, list_weights
from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.formats.sharded.reader import list_shard_names
from ckptool.formats.sharded.sibling_files import CHECKPOINT_PATTERN, TRAINING_STATE_PATTERN
from ckptool.loaders.model_folder import MODEL_CONFIGS, find_model_folder

_FILE_PATTERN: Final = r"(?i).+\.(?:safetensors|bin|pth?|pt2|ckpt)"
"""Names of files that are taken without having been named: `.pkl` and `.tar` are often others."""
_DCP_METADATA: Final = ".metadata"
_PASSED_OVER: Final = frozenset({"__pycache__", "node_modules", "site-packages"})
MAX_VISITED: Final = 200_000
"""Names that one pattern or folder may have below it."""
GLOB_CHARACTERS: Final = frozenset("*?[")


def is_pattern(text: str) -> bool:
    """Whether a text is a glob, and no plain path."""
    return bool(GLOB_CHARACTERS & set(text))


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder: itself if it is one, else files and folders below it.

    A folder with a framework's configuration is one, even without weights: the framework does not
    look for them below it.

    A folder with a single file is that checkpoint, and one with none is returned as it is: opening
    it gives the reason.

    Raises:
        ReadError: it has too many names below it, or cannot be listed.
    """
    checkpoints = list(_walk(folder, "*", folder, is_checkpoint=_is_model_folder))
    shards = {shard for path in checkpoints if path.is_dir() for shard in _iter_shards(path)}
    matches = [path for path in checkpoints if path not in shards]
    is_single = len(matches) < 2 and all(p.parent == folder and p.is_file() for p in matches)
    return [folder] if is_single else matches


def _iter_shards(folder: Path) -> Iterator[Path]:
    """Yield the shards that the indexes of a folder name, also in folders below it."""
    for index_name in filter(is_index_name, list_names(folder)):
        for name in list_shard_names(folder / index_name, DEFAULT_LIMITS):
            yield folder / name


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


def _walk(
    start: Path,
    pattern: str,
    folder: Path,
    *,
    is_checkpoint: Callable[[Path], bool] = lambda _: False,
) -> Iterator[Path]:
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
        if (_is_checkpoint_folder(file_names) or is_checkpoint(directory)) and (
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
    if not any(map(is_weights_name, file_names)):
        return names
    return [name for name in names if not re.fullmatch(TRAINING_STATE_PATTERN, name)]


def _is_checkpoint_name(name: str) -> bool:
    return bool(re.fullmatch(_FILE_PATTERN, name)) or name == ".metadata"


def _is_checkpoint_folder(file_names: Sequence[str]) -> bool:
    """Whether a folder is one checkpoint: it has an index, or weights beside a configuration."""
    is_configured = any(name.endswith("config.json") for name in file_names)
    return any(name == _DCP_METADATA or is_index_name(name) for name in file_names) or (
        is_configured and any(map(is_weights_name, file_names))
    )


def _is_model_folder(folder: Path) -> bool:
    """Whether a folder is that of one model of a framework, or its configuration is damaged."""
    try:
        model_folder = find_model_folder(folder)
    except ReadError:
        return True
    return model_folder is not None and not model_folder.is_pipeline


def find_checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoints in a local folder and below it, sorted.

    A folder that is one checkpoint itself, by an index, `.metadata`, a framework's configuration or
    its weight file, is in the list in the place of its files.

    Raises:
        ReadError: a folder cannot be listed, or has too many names below it.
    """
    return list(_iter_checkpoint_files(folder, count(1), folder))


def _iter_checkpoint_files(folder: Path, visits: Iterator[int], start: Path) -> Iterator[Path]:
    """Yield the checkpoints in a folder below `start`; `visits` counts the names of them all."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ReadError(folder, describe_os_error(error)) from error
    if _is_one_checkpoint(folder, [entry.name for entry in entries]):
        yield folder
        return
    for entry in entries:
        if next(visits) > MAX_VISITED:
            raise ReadError(start, f"has more than {MAX_VISITED:,} files: name a folder in it")
        if re.fullmatch(CHECKPOINT_PATTERN, entry.name) and entry.is_file():
            yield folder / entry.name
        elif not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _iter_checkpoint_files(folder / entry.name, visits, start)


def _is_one_checkpoint(folder: Path, names: Sequence[str]) -> bool:
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".json"))]
    is_configured = not MODEL_CONFIGS.isdisjoint(weights)
    is_marked = _DCP_METADATA in names or bool(weights and list_weights(weights))
    return is_marked or (is_configured and _is_model_folder(folder))

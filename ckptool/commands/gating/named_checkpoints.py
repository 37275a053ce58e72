"""Paths, and entries of the configuration -> checkpoints, and the entries without one."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from glob import glob
from itertools import chain
from pathlib import Path, PurePosixPath

from msgspec import Struct

from ckptool.commands.sources.checkpoint_files import (
    is_pattern,
    iter_matching_checkpoints,
    list_checkpoints,
)
from ckptool.commands.sources.checkpoint_paths import PathLike
from ckptool.config import ModelEntry, PathEntry, ProjectConfig
from ckptool.errors import ReadError
from ckptool.formats.files.source import is_directory
from ckptool.loaders.model_folder import PIPELINE_CONFIG
from ckptool.locations import Location, RemotePath, is_remote, list_glob_names, parse_location
from ckptool.rules.release.policy_issues import UnmatchedEntry


class NamedCheckpoints(Struct, frozen=True):
    """What a gate was told to judge."""

    locations: tuple[Location, ...]
    errors: dict[str, str] = {}
    """Path, pattern or folder -> why it names no checkpoint."""
    folder_names: Mapping[Location, frozenset[str]] = {}
    """First checkpoint of each folder that was given and has several -> the names of all."""


def expand_paths(paths: Iterable[PathLike]) -> NamedCheckpoints:
    """Return the checkpoints that paths, patterns and folders name, each once, in order.

    A path that exists is never a pattern.
    """
    locations: dict[Location, None] = {}
    errors: dict[str, str] = {}
    folder_names: dict[Location, frozenset[str]] = {}
    for path in paths:
        location = parse_location(path)
        try:
            checkpoints = _expand_path(location)
        except ReadError as error:
            errors[str(location)] = str(error)
            continue
        locations |= dict.fromkeys(checkpoints)
        if location not in checkpoints and is_directory(location):
            folder_names |= _group_by_folder(checkpoints)
    return NamedCheckpoints(tuple(locations), errors, folder_names)


def _group_by_folder(checkpoints: Iterable[Location]) -> dict[Location, frozenset[str]]:
    """Return the first checkpoint of each folder -> the names of all that are in it."""
    by_folder: dict[Location, list[Location]] = {}
    for checkpoint in checkpoints:
        by_folder.setdefault(checkpoint.parent, []).append(checkpoint)
    return {files[0]: frozenset(file.name for file in files) for files in by_folder.values()}


def _expand_path(location: Location) -> list[Location]:
    """Return the checkpoints of one path.

    Raises:
        ReadError: a pattern matches nothing, or a folder has too many files.
    """
    if isinstance(location, RemotePath):
        return [location]
    if location.is_dir() and not (location / PIPELINE_CONFIG).is_file():
        return [*list_checkpoints(location)]
    if location.exists() or not is_pattern(str(location)):
        return [location]
    matches = [Path(path) for path in sorted(glob(str(location), recursive=True))]  # noqa: PTH207
    if not matches:
        raise ReadError(location, "nothing matches this pattern")
    return [path for match in matches for path in _expand_path(match)]


def list_configured_checkpoints(config: ProjectConfig) -> NamedCheckpoints:
    """Return the checkpoints that the entries of `[[models]]` match, in the order of the entries.

    Paths are relative to the working directory. A remote entry is taken if it is no pattern.
    """
    locations: dict[Location, None] = {}
    errors: dict[str, str] = {}
    for entry in config.settings.models:
        try:
            locations |= dict.fromkeys(_iter_entry_checkpoints(entry, config))
        except ReadError as error:
            errors[entry.path] = str(error)
    return NamedCheckpoints(tuple(locations), errors)


def _iter_entry_checkpoints(entry: ModelEntry, config: ProjectConfig) -> Iterator[Location]:
    """Yield the checkpoints that are judged with the module of `entry`."""
    if is_remote(entry.path):
        if not is_pattern(entry.path):
            yield parse_location(entry.path)
        return
    for path in iter_matching_checkpoints(entry.path, config.directory):
        if config.find_entry(path) == entry:
            yield Path(os.path.relpath(path))


def find_unmatched_entries(
    config: ProjectConfig, locations: Sequence[Location]
) -> tuple[UnmatchedEntry, ...]:
    """Return the entries of `[[models]]` and `[[paths]]` that apply to no checkpoint.

    Neither to one of `locations`, nor to any file on disk: such an entry is misspelt, or outdated.
    A remote pattern cannot be listed, and is unmatched only where no location is given.

    Raises:
        ReadError: a pattern has too many files below it.
    """
    reasons = [
        ("models", entry.path, _explain_unmatched(entry, config, locations))
        for entry in config.settings.models
    ]
    reasons += [
        ("paths", entry.path, _explain_unmatched(entry, config, locations))
        for entry in config.settings.paths
    ]
    return tuple(
        UnmatchedEntry(table, pattern, reason)
        for table, pattern, reason in dict.fromkeys(reasons)
        if reason
    )


def _explain_unmatched(
    entry: ModelEntry | PathEntry, config: ProjectConfig, locations: Sequence[Location]
) -> str:
    """Return why an entry applies to no checkpoint, "" if it applies to one."""
    matching = [path for path in locations if _matches_location(entry.path, path, config)]
    if is_remote(entry.path) and not matching:
        is_unlisted = is_pattern(entry.path) and not locations
        return "a remote pattern cannot be listed: name its checkpoints" if is_unlisted else ""
    candidates = chain(matching, iter_matching_checkpoints(entry.path, config.directory))
    if isinstance(entry, PathEntry):
        is_matched = next(candidates, None) is not None
        return "" if is_matched else _suggest_pattern(entry.path, config.directory)
    first_entry: ModelEntry | None = None
    for path in candidates:
        first_entry = _find_entry(path, entry, config)
        if first_entry == entry:
            return ""
    if first_entry is None:
        return _suggest_pattern(entry.path, config.directory)
    return f"all that it matches belongs to `{first_entry.path}`, which comes first"


def _find_entry(path: Location, entry: ModelEntry, config: ProjectConfig) -> ModelEntry | None:
    """Return the entry of `path`; `entry` where several apply, which judging `path` reports."""
    try:
        return config.find_entry(path)
    except ReadError:
        return entry


def _matches_location(pattern: str, location: Location, config: ProjectConfig) -> bool:
    return any(fnmatchcase(n, pattern) for n in list_glob_names(location, config.directory))


def _suggest_pattern(pattern: str, directory: Path) -> str:
    """Return that no checkpoint matches, with the name that was probably meant."""
    normal = os.path.normpath(pattern)
    if normal != pattern and not normal.startswith(("/", "..")):
        return f"no checkpoint matches it: write `{normal}`"
    if normal.startswith(("/", "..")):
        return "no checkpoint matches it: it is relative to the configuration, and below it"
    folder, steps = directory, PurePosixPath(pattern).parts
    for index, step in enumerate(steps):
        if (folder / step).exists():
            folder /= step
            continue
        try:
            names = [] if is_pattern(step) else sorted(path.name for path in folder.iterdir())
        except OSError:
            names = []
        close = get_close_matches(step, names, n=1)
        if close:
            meant = "/".join((*steps[:index], close[0], *steps[index + 1 :]))
            return f"no checkpoint matches it: did you mean `{meant}`?"
        break
    return "no checkpoint matches it"

"""Entries of `[[models]]` -> their modules, for commands that name no checkpoint."""

from pathlib import Path

from ckptool.commands.sources.checkpoint_files import iter_matching_checkpoints
from ckptool.commands.sources.file_arguments import (
    FileArguments,
    has_places,
    parse_configured_kwargs,
    read_file_arguments,
)
from ckptool.commands.target import ModuleTarget
from ckptool.config import ModelEntry, ProjectConfig
from ckptool.errors import UsageError
from ckptool.loaders.folder_weights import open_weights


def list_configured_targets(config: ProjectConfig) -> list[tuple[ModelEntry, ModuleTarget]]:
    """Return the entries of `[[models]]` and their modules; of the same module, the first.

    Raises:
        UsageError: as for `build_entry_target`.
        ReadError: a checkpoint whose arguments a module needs cannot be read.
    """
    entries = {
        (entry.module, repr(entry.kwargs)): entry for entry in reversed(config.settings.models)
    }
    return [(entry, build_entry_target(entry, config)) for entry in reversed(entries.values())]


def build_entry_target(entry: ModelEntry, config: ProjectConfig) -> ModuleTarget:
    """Return the module of an entry, with the arguments of its first checkpoint if it takes them.

    Raises:
        UsageError: it takes arguments of a checkpoint, and there is none, or they are not in it.
        ReadError: that checkpoint cannot be read.
    """
    kwargs = parse_configured_kwargs(entry.kwargs)
    file_arguments = FileArguments()
    if has_places(kwargs):
        file_arguments = read_file_arguments(open_weights(_find_first(entry, config)), kwargs)
    return ModuleTarget(
        entry.module,
        kwargs,
        entry.at,
        (config.directory,),
        entry.inputs,
        file_arguments=file_arguments,
    )


def _find_first(entry: ModelEntry, config: ProjectConfig) -> Path:
    """Return the first local checkpoint that is judged with the module of `entry`.

    Raises:
        UsageError: there is none.
    """
    for path in iter_matching_checkpoints(entry.path, config.directory):
        if config.find_entry(path) == entry:
            return path
    raise UsageError(
        f"{entry.module}: its `kwargs` are stored in a checkpoint, and no local file matches "
        f"path = {entry.path!r}"
    )

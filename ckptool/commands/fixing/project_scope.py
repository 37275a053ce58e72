"""Configuration and working directory -> the project whose source is edited."""

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.sources.checkpoint_files import iter_matching_checkpoints
from ckptool.commands.sources.file_arguments import parse_configured_kwargs
from ckptool.commands.target import ModuleTarget
from ckptool.config import ModelEntry, ProjectConfig
from ckptool.migration.codemod.source_overlay import move_into_overlay


class ProjectScope(Struct, frozen=True):
    """The project's folder, and the folder that the command runs in."""

    root: Path
    """Resolved folder of the configuration, or the working directory."""
    folder: Path
    """Resolved working directory, in `root`."""
    config: ProjectConfig

    def move_target(self, target: ModuleTarget, overlay: Path) -> ModuleTarget:
        """Return the target as it is in a copy of the project."""
        search_paths = (
            overlay,
            *(Path(move_into_overlay(str(p), self.root, overlay)) for p in target.search_paths),
        )
        return replace(target, search_paths=search_paths, module=self._move_name(target, overlay))

    def list_checkpoints(self, target: ModuleTarget) -> tuple[Path, ...]:
        """Return the checkpoints of the configuration that this module loads, in order."""
        paths: dict[Path, None] = {}
        for entry in self.config.settings.models:
            kwargs = parse_configured_kwargs(entry.kwargs)
            if (entry.module, kwargs) == (target.module, target.kwargs):
                paths |= dict.fromkeys(self._iter_matches(entry))
        return tuple(paths)

    def _iter_matches(self, entry: ModelEntry) -> Iterator[Path]:
        for path in iter_matching_checkpoints(entry.path, self.config.directory):
            if self.config.find_entry(path) == entry:
                yield path

    def _move_name(self, target: ModuleTarget, overlay: Path) -> str:
        """Return the import target; the file of "/project/net.py:Net" is that of the copy."""
        name = str(target.module)
        file, colon, expression = name.partition(":")
        is_file = file.endswith(".py") and Path(file).is_absolute()
        return (
            f"{move_into_overlay(file, self.root, overlay)}{colon}{expression}" if is_file else name
        )


def find_project(config: ProjectConfig) -> ProjectScope:
    """Return the project: the configuration's folder if the command runs in it, else this one."""
    folder = Path.cwd().resolve()
    directory = config.directory.resolve()
    is_inside = config.file is not None and folder.is_relative_to(directory)
    return ProjectScope(directory if is_inside else folder, folder, config)

"""Configuration -> the chain of migrations of a project, and the module whose state it records."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from ckptool.commands.sources.configured_models import build_entry_target
from ckptool.commands.sources.module_choice import ModuleOptions
from ckptool.commands.target import ModuleTarget
from ckptool.config import ModelEntry, ProjectConfig, load_config
from ckptool.errors import RevisionError, UsageError
from ckptool.locations import Location
from ckptool.phrases import MAX_NAMED, join_limited, quote_shell
from ckptool.revisions.chain import FOLDER_NAME, Chain, read_chain

if TYPE_CHECKING:
    from torch import nn


class ChainOptions(Struct, frozen=True):
    """What a command says about its chain and its module."""

    config: ProjectConfig
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None
    kwargs: Mapping[str, object] | None = None
    loader: str | None = None
    folder: Path | None = None
    """Folder of the revisions; None for that of the configuration."""

    @property
    def own_target(self) -> ModuleTarget | None:
        """The module that the command names, or None."""
        return ModuleOptions(self.module, self.kwargs, loader=self.loader).target


def build_options(
    config: ProjectConfig | None,
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    kwargs: Mapping[str, object] | None = None,
    loader: str | None = None,
    chain: str | Path | None = None,
) -> ChainOptions:
    """Return the options of a command about a chain, with the nearest configuration by default."""
    settings = load_config(Path.cwd()) if config is None else config
    return ChainOptions(settings, module, kwargs, loader, None if chain is None else Path(chain))


def format_revision_command(options: ChainOptions) -> str:
    """Return the command that drafts a revision of this chain and module."""
    words = ["--chain", str(options.folder)] if options.folder else []
    words += ["--module", options.module] if isinstance(options.module, str) else []
    words += [w for k, v in (options.kwargs or {}).items() for w in ("-k", f"{k}={v!r}")]
    words += ["--loader", options.loader] if options.loader else []
    return " ".join(['ckptool revision -m "what changed"', *map(quote_shell, words)])


class ProjectChain(Struct, frozen=True):
    """The folder of a chain, and the module whose state_dict its head describes."""

    folder: Path
    module_target: ModuleTarget | None
    """None where neither the command nor the configuration names one."""
    inputs: tuple[str, ...] = ()
    configured_modules: tuple[str, ...] = ()
    """The modules of `[[models]]`, each once."""

    def require_target(self, purpose: str) -> ModuleTarget:
        """Return the module; `purpose` begins the sentence that says what needs it.

        Raises:
            UsageError: it is not known, or is one of several.
        """
        if self.module_target is not None:
            return self.module_target
        if len(self.configured_modules) > 1:
            options = join_limited([f"--module {m}" for m in self.configured_modules], 4)
            raise UsageError(f"{purpose} needs one module, and [[models]] has several: {options}")
        raise UsageError(
            f"{purpose} needs today's module: --module package.module:Name, or "
            "[[tool.ckptool.models]] of pyproject.toml or ckptool.toml"
        )

    def read(self) -> Chain:
        """Return the chain.

        Raises:
            RevisionError: there is none, or it is inconsistent.
        """
        if not self.folder.is_dir():
            raise RevisionError(
                f'{self.folder}: the project has no chain of migrations: ckptool revision -m "..." '
                "begins one"
            )
        return read_chain(self.folder)


def find_project_chain(
    options: ChainOptions, path: Location | None = None, *, needs_module: bool = True
) -> ProjectChain:
    """Return the chain of a checkpoint, or without one that of the project.

    Args:
        options: of the command.
        path: the checkpoint; None for a command about the chain itself.
        needs_module: whether the module is built; else it only chooses the chain.

    Raises:
        UsageError: the project has several chains, and nothing chooses one; or the module that is
            to choose one is not in the configuration.
    """
    config = options.config
    entries = [e for e in config.settings.models if options.module in {None, e.module}]
    modules = tuple(dict.fromkeys(entry.module for entry in config.settings.models))
    if not (needs_module or entries or options.module is None):
        others = f", only {join_limited(modules, MAX_NAMED)}" if modules else ""
        raise UsageError(
            f"-m {options.module}: chooses a chain, and is not in [[models]] of the configuration"
            f"{others}: name the folder with --chain"
        )
    matched = config.find_entry(path) if path is not None and options.module is None else None
    folders = {find_entry_folder(entry, config): entry for entry in reversed(entries)}
    folders.pop(None, None)
    entry = matched or (entries[0] if len({e.module for e in entries}) == 1 else None)
    folder = options.folder
    if folder is None and entry is not None:
        folder = find_entry_folder(entry, config)
    if folder is None and len(folders) > 1:
        names = join_limited([str(path) for path in folders], MAX_NAMED)
        raise UsageError(f"the project has several chains: --chain names one of {names}")
    if folder is not None and entry is None:
        same = (e for path, e in folders.items() if path and path.resolve() == folder.resolve())
        entry = next(same, None)
    if folder is None:
        folder, only_entry = next(iter(folders.items()), (default_folder(config), None))
        entry = entry or only_entry
    assert folder is not None
    target = options.own_target if needs_module else None
    if needs_module and target is None and entry is not None:
        config.announce_code(entry.module)
        target = build_entry_target(entry, config)
    return ProjectChain(folder, target, target.inputs if target else (), modules)


def default_folder(config: ProjectConfig) -> Path:
    """Return `ckpt_migrations` next to the configuration, or in the current folder without one."""
    folder = Path(os.path.relpath(config.directory)) if config.file else Path()
    return folder / FOLDER_NAME


def find_entry_folder(entry: ModelEntry, config: ProjectConfig) -> Path | None:
    """Return the folder of the chain of an entry of `[[models]]`; None if it has none.

    Without `revisions` of its own it is `ckpt_migrations`: that of the only module, or of several
    that of the module whose state was recorded there last.

    Raises:
        RevisionError: the chain has to be read for that, and is inconsistent.
    """
    if entry.revisions is not None:
        return Path(os.path.relpath(config.directory)) / entry.revisions
    folder = default_folder(config)
    if not folder.is_dir():
        return None
    if len({other.module for other in config.settings.models}) == 1:
        return folder
    return folder if read_chain(folder).revisions[-1].module == entry.module else None

"""Options, configuration and folder -> ModuleTarget: the module for a checkpoint."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.sources.checkpoint_paths import (
    PathLike,
    open_checkpoint_or_stdin,
    require_local_path,
    require_path,
)
from ckptool.commands.sources.file_arguments import (
    EVERY_NAME,
    Arguments,
    list_places,
    normalize_kwargs,
    parse_configured_kwargs,
    read_hyper_parameters,
)
from ckptool.commands.sources.option_checks import reject_unused_options
from ckptool.config import TRUST_RULE, ProjectConfig, load_config
from ckptool.errors import ModuleError, UsageError
from ckptool.formats.files.source import is_directory
from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.loaders.hints.folder_hint import suggest_folder
from ckptool.loaders.hints.lightning_config import suggest_cli_module
from ckptool.loaders.hints.single_files import suggest_single_file
from ckptool.loaders.model_folder import ModelFolder, find_model_folder, require_model_folder
from ckptool.locations import Location, suggest_module_option
from ckptool.model import Checkpoint
from ckptool.phrases import join_limited

if TYPE_CHECKING:
    from torch import nn

    from ckptool.compare.module_diff import ModuleDiff
from ckptool.commands.target import ModuleTarget

_FRESH_ADVICE = "builds a module like a live one: a name or a class says itself how it is built"


class ModuleOptions(Struct, frozen=True):
    """Module options of a command; None leaves the choice to the configuration."""

    module: "str | nn.Module | Callable[..., nn.Module] | None" = None
    kwargs: Arguments | str | None = None
    at: str | None = None
    into: str | None = None
    """Path of the sub-module that alone is meant; None for the whole module."""
    loader: str | None = None
    """Name in LOADER_NAMES; None selects it by the folder."""
    base: PathLike | None = None
    """Folder of the model that an adapter is for; None for the one that it names."""
    fresh: "Callable[[], nn.Module] | None" = None
    """Builds another module like a live one."""

    @property
    def target(self) -> ModuleTarget | None:
        """The module of the options; None if they have none.

        Raises:
            UsageError: it is no name, module, class or function; or `fresh` is not for it.
        """
        if self.module is None:
            reject_unused_options({"fresh=": self.fresh is not None}, _FRESH_ADVICE)
            return None
        is_callable = callable(self.module)  # a live module is as well
        if not (isinstance(self.module, str) or is_callable):
            kind = type(self.module).__name__
            raise UsageError(
                f"module= is a {kind}: give a module, its class, a function that returns one, or "
                "a name such as 'package.module:Name'"
            )
        target = ModuleTarget(
            self.module,
            normalize_kwargs(self.kwargs),
            self.at,
            into=self.into or "",
            fresh=self.fresh,
        )
        is_unused = self.fresh is not None and not target.is_live
        reject_unused_options({"fresh=": is_unused}, _FRESH_ADVICE)
        return target


def find_target(
    path: Location, module_options: ModuleOptions, config: ProjectConfig | None
) -> ModuleTarget | None:
    """Return the module in the options, else the configured one, else the folder's, else None.

    Raises:
        ReadError: the configuration of the folder cannot be read.
        ModuleError: the folder's framework is not installed.
        UsageError: `path` is not a path, the folder is none of the framework that is named, or a
            base is given and the module is not built from an adapter.
    """
    require_path(path)
    model_folder = _find_folder(path, module_options)
    named_target = module_options.target or _find_configured(path, module_options, config)
    is_adapter = model_folder is not None and model_folder.loader == "peft"
    reject_unused_options(
        {"--base": module_options.base is not None and not (is_adapter and named_target is None)},
        f"is the base of an adapter, and {path} is "
        + ("built by the module that is named" if is_adapter else "not an adapter's folder"),
    )
    if named_target is not None:
        return _with_loader(named_target, module_options, model_folder)
    return None if model_folder is None else _build_folder_target(model_folder, module_options)


def is_adapter_folder(path: Location) -> bool:
    """Whether `path` is the folder of an adapter.

    Raises:
        ReadError: its configuration cannot be read.
    """
    model_folder = None if str(path) == "-" else find_model_folder(path)
    return model_folder is not None and model_folder.loader == "peft"


def _find_folder(path: Location, module_options: ModuleOptions) -> ModelFolder | None:
    """Return the framework's folder at `path`; None if it is none.

    Raises:
        ReadError: its configuration cannot be read.
        UsageError: it is none of the framework that the options name.
    """
    loader = None if module_options.loader == "torch" else module_options.loader
    if str(path) == "-":
        return None
    if loader is not None and module_options.module is None:
        return require_model_folder(path, loader)
    return find_model_folder(path, loader)


def _with_loader(
    module_target: ModuleTarget, module_options: ModuleOptions, model_folder: ModelFolder | None
) -> ModuleTarget:
    """Return the named module with the loader of the options, else with that of the folder."""
    if model_folder is not None and model_folder.config_name == "config.json":
        module_target = replace(module_target, folder=model_folder.path)
    if module_options.loader is not None:
        return replace(module_target, loader=module_options.loader, is_loader_required=True)
    if model_folder is None:
        return module_target
    return replace(module_target, loader=model_folder.loader)


def require_frameworks(model_folder: ModelFolder) -> None:
    """Check that the packages are installed that build the models of a folder.

    Raises:
        ModuleError: one is not.
    """
    from ckptool.loaders.registry import list_missing_packages

    missing_packages = list_missing_packages(*model_folder.frameworks)
    if missing_packages:
        verb = "is" if len(missing_packages) == 1 else "are"
        raise ModuleError(
            str(model_folder.path),
            f"{model_folder.evidence}, but {join_limited(missing_packages, 3)} {verb} not installed"
            f" here: {model_folder.install_hint}; or give the module with -m package.module:Name",
        )


def _build_folder_target(model_folder: ModelFolder, module_options: ModuleOptions) -> ModuleTarget:
    """Return the module that a framework's folder names.

    Raises:
        ModuleError: the framework, or a package that it needs, is not installed.
    """
    require_frameworks(model_folder)
    announce = TRUST_RULE.get().announce_folder
    if announce is not None:
        announce(f"{model_folder.path}: {model_folder.evidence}")
    names: dict[str, object] = {
        "loader": model_folder.loader,
        "folder": model_folder.path,
        "class_name": model_folder.class_name,
    }
    if module_options.base is not None:
        names["base"] = require_local_path(module_options.base)
    return ModuleTarget(
        "ckptool.loaders.registry:build_folder_model",
        names,
        module_options.at,
        into=module_options.into or "",
        loader=module_options.loader or model_folder.loader,
        is_loader_required=True,
        label=model_folder.label,
    )


def _find_configured(
    path: Location, module_options: ModuleOptions, config: ProjectConfig | None
) -> ModuleTarget | None:
    loaded_config = config or load_config(Path.cwd())
    entry = loaded_config.find_entry(path)
    if entry is None:
        return None
    loaded_config.announce_code(entry.module)
    return ModuleTarget(
        entry.module,
        {**parse_configured_kwargs(entry.kwargs), **normalize_kwargs(module_options.kwargs)},
        module_options.at if module_options.at is not None else entry.at,
        (loaded_config.directory,),
        entry.inputs,
        module_options.into or "",
    )


def need_target(
    path: Location,
    module_options: ModuleOptions,
    config: ProjectConfig | None,
    checkpoint: Checkpoint | None = None,
    *,
    other_choice: str = "",
) -> ModuleTarget:
    """Return the result of `find_target`; the error names the class that `checkpoint` names.

    `other_choice` is what the command takes instead of a module, "" if it takes nothing else.

    Raises:
        ReadError: the folder is no checkpoint, or several.
        ModuleError: the folder's framework is not installed.
        UsageError: neither the options nor the configuration name a module.
    """
    module_target = find_target(path, module_options, config)
    if module_target is None:
        if suggestion := suggest_module_option(str(path)):
            raise UsageError(f"{path}: {suggestion}")
        if checkpoint is None and is_directory(path):
            # A folder that is no checkpoint, or several, has that said first.
            checkpoint = open_checkpoint_or_stdin(path, DEFAULT_LIMITS)
        raise UsageError(
            f"{path}: no module to compare it with. Give one with -m package.module:Name, or in "
            f"[[tool.ckptool.models]] of pyproject.toml or ckptool.toml{other_choice}"
            f"{suggest_cli_module(path) or _suggest_module(checkpoint) or suggest_folder(path)}"
            f"{suggest_single_file(checkpoint)}"
        )
    return module_target


def _suggest_module(checkpoint: Checkpoint | None) -> str:
    """Return a sentence with the class that a file names, "" if it names none.

    Lightning's command line writes `_class_path`, and a pickled module its own class. Neither is
    imported: a file does not choose the code that is run. Of another file of Lightning, only that
    it is one is known.
    """
    if checkpoint is None:
        return ""
    names: list[object] = [s.modules[""].name for s in checkpoint.states if "" in s.modules]
    names += [
        entry.value.get("_class_path")
        for entry in checkpoint.entries
        if entry.at == "hyper_parameters" and isinstance(entry.value, dict)
    ]
    for name in names:
        if isinstance(name, str) and re.fullmatch(
            r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", name, re.ASCII
        ):
            package, _, class_name = name.rpartition(".")
            return f". The file itself refers to {name}: if you trust it, -m {package}:{class_name}"
    if any(entry.at == "pytorch-lightning_version" for entry in checkpoint.entries):
        arguments = tuple(read_hyper_parameters(checkpoint))
        listed = join_limited(arguments, 8)
        fields = f", built with its hyper_parameters ({listed})" if arguments else ""
        return f". The file is a Lightning checkpoint: give its LightningModule{fields}"
    return ""


def describe_choices(module_diff: "ModuleDiff", module_target: ModuleTarget) -> tuple[str, ...]:
    """Return notes about implicit choices: the state in the file, and constructor arguments."""
    notes: list[str] = []
    is_part = all(state.at != module_diff.state.at for state in module_diff.checkpoint.states)
    if is_part and module_diff.state.tensors:
        notes.append(f"compared with the file's keys under `{module_diff.state.at}`")
    elif module_target.at is None and (
        module_diff.state.at or len(module_diff.checkpoint.states) > 1
    ):
        states = [
            state for state in module_diff.checkpoint.states if state is not module_diff.state
        ]
        other_places = [state.at or "." for state in states if state.role != "tensors"]
        alternatives = (
            f"; the file also has {join_limited(other_places, 3)}" if other_places else ""
        )
        notes.append(f"compared at `{module_diff.state.at or '.'}`, the best match{alternatives}")
    if module_diff.loading_info is not None:
        notes += module_diff.loading_info.notes
    places = list_places(module_target.kwargs)
    source = places.get(EVERY_NAME, "the file")
    if module_diff.module.file_arguments:
        names = ", ".join(module_diff.module.file_arguments)
        notes.append(f"matching constructor arguments were taken from {source}: {names}")
    notes += [f"`{n}` was taken from {place}" for n, place in places.items() if n != EVERY_NAME]
    return tuple(notes)

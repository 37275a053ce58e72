"""Arguments -> ModuleTarget: a module, and how to build, describe and run it."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.sources.file_arguments import (
    Arguments,
    FileArguments,
    drop_places,
    fill_places,
    format_argument,
    read_file_arguments,
)
from ckptool.locations import Location
from ckptool.model import Checkpoint, ModuleInfo

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from ckptool.modules import ModuleSpec
    from ckptool.verification.loading.trial_module import TrialModule
    from ckptool.verification.result import ForwardEffects
    from ckptool.verification.target import VerificationTarget


class ModuleTarget(Struct, frozen=True):
    """A module to compare a checkpoint with, and how to build it."""

    module: "str | nn.Module | Callable[..., nn.Module]"
    """An import target; or a live module, a class, or a function that returns a module."""
    kwargs: Arguments = {}
    at: str | None = None
    """Dotted place of the state in the file; None takes the best match."""
    search_paths: tuple[Path, ...] = ()
    """Folders to import the module from, besides the current directory."""
    inputs: tuple[str, ...] = ()
    """Input specs of the configuration."""
    into: str = ""
    """Path of the sub-module that alone is meant, "" for the whole module."""
    loader: str | None = None
    """Name of the framework whose loader loads it; None for `load_state_dict`."""
    is_loader_required: bool = False
    """Whether the user named `loader`: else it is only taken for a module of that framework."""
    label: str = ""
    """What the module is called instead of its import target, "" for the target."""
    fresh: "Callable[[], nn.Module] | None" = None
    """Builds another module like the live one in `module`."""
    folder: Location | None = None
    """Framework's folder whose configuration gives the constructor's arguments if `kwargs` has
    none and the module is a class of the framework; None for no folder."""
    file_arguments: FileArguments = FileArguments()
    """Constructor arguments of a checkpoint, for questions that name none."""

    @property
    def is_live(self) -> bool:
        """Whether it is an instance, and not what makes one."""
        is_named_or_class = isinstance(self.module, str | type)
        return not is_named_or_class and hasattr(self.module, "named_modules")

    def read_file_arguments(self, checkpoint: Checkpoint) -> FileArguments:
        """Return the constructor arguments in the file; without those of `kwargs`, which win.

        Raises:
            UsageError: `kwargs` name a place of the file that has no plain data.
        """
        return read_file_arguments(checkpoint, self.kwargs)

    def build_spec(self, file_arguments: FileArguments) -> "ModuleSpec":
        """Return the spec to build the module.

        Raises:
            UsageError: `kwargs` name a place of a checkpoint, and there is none.
        """
        from ckptool.loaders.own_classes import find_folder_arguments
        from ckptool.modules import ModuleSpec

        if file_arguments == FileArguments():
            file_arguments = self.file_arguments
        is_named = isinstance(self.module, str)
        return ModuleSpec(
            self.module if isinstance(self.module, str) else name_object(self.module),
            fill_places(self.kwargs, file_arguments),
            (Path.cwd(), *self.search_paths) if is_named else (),
            file_arguments.defaults,
            None if self.into else self.loader,
            self.is_loader_required,
            self.label,
            None if is_named else self.module,
            self.fresh,
            frozenset(name.partition(".")[0] for name in file_arguments.values),
            file_arguments.offers,
            partial(find_folder_arguments, self.folder) if self.folder else None,
            file_arguments.given_names,
        )

    def build_spec_of(
        self,
        module: "str | nn.Module | Callable[..., nn.Module]",
        file_arguments: FileArguments,
    ) -> "ModuleSpec":
        """Return the spec of another module; only arguments that it accepts are used."""
        if file_arguments == FileArguments():
            file_arguments = self.file_arguments
        arguments = fill_places(self.kwargs, file_arguments)
        defaults = {**file_arguments.defaults, **arguments}
        return replace(self, module=module, kwargs={}, fresh=None).build_spec(
            FileArguments(
                defaults,
                offers=file_arguments.offers,
                given_names=frozenset(drop_places(self.kwargs)),
            )
        )

    def enter_module_code(self, file_arguments: FileArguments) -> "AbstractContextManager[None]":
        """Return a context in which the module's code runs as it did when it was imported.

        Its folders are importable, and what it set of the process is set for it. Not to be nested.
        """
        from ckptool.modules.import_target import prepend_search_paths

        return prepend_search_paths(self.build_spec(file_arguments))

    def examine_module(self, file_arguments: FileArguments) -> "tuple[ModuleInfo, nn.Module]":
        """Return the description of the module's state, and an instance; or of its sub-module.

        Raises:
            ModuleError: it cannot be imported or built.
            UsageError: it has no such sub-module.
        """
        from ckptool.loaders.describe import describe_for_loader
        from ckptool.modules import examine_and_build
        from ckptool.modules.submodule import select_submodule
        from ckptool.verification.loading.load_probe import check_own_load

        spec = self.build_spec(file_arguments)
        module_info, module = examine_and_build(spec)
        # A command can repeat the arguments of a name, and a framework's folder is one itself.
        if self.label:
            module_info = replace(module_info, folder=str(self.kwargs["folder"]))
        elif ":" in spec.target:
            module_info = replace(module_info, arguments=_format_arguments(self.kwargs))
        with self.enter_module_code(file_arguments):
            module_info = describe_for_loader(module_info, module, spec)
            if self.into:
                module_info = select_submodule(module_info, self.into)
                module = module.get_submodule(self.into)
            trial = self.make_trial(module, file_arguments)
            return check_own_load(module_info, trial), module

    def make_trial(self, module: "nn.Module", file_arguments: FileArguments) -> "TrialModule":
        """Return the module, as examined, with the way to build another one."""
        from ckptool.verification.loading.trial_module import make_trial

        return make_trial(module, self.build_spec(file_arguments), self.into)

    def run_forward(
        self, file_arguments: FileArguments, inputs: object
    ) -> "tuple[ForwardEffects, ...]":
        """Run forward and return its effects; () without inputs.

        Raises:
            ModuleError: the module cannot be imported or built.
            UsageError: the inputs are invalid.
        """
        if inputs is None:
            return ()
        from ckptool.verification.forward_effects import measure_forward_effects
        from ckptool.verification.inputs import parse_inputs
        from ckptool.verification.module_factory import open_module_factory

        with open_module_factory(self.build_spec(file_arguments)) as factory:
            return (measure_forward_effects(factory, parse_inputs(inputs)),)

    def open_verification_target(
        self, checkpoint: Checkpoint
    ) -> "AbstractContextManager[VerificationTarget]":
        """Return a context manager that gives the VerificationTarget of this module."""
        from ckptool.verification.target import open_verification_target

        return open_verification_target(
            checkpoint, self.build_spec(self.read_file_arguments(checkpoint)), self.at
        )


def name_object(module: "nn.Module | Callable[..., nn.Module]") -> str:
    """Return "package.module:Name" of a class or function that can be imported, else its name.

    Of a live module the name of its class, which says nothing of how it was built.
    """
    name = getattr(module, "__qualname__", "")
    if not name:
        return type(module).__qualname__
    source = getattr(module, "__module__", None)
    named_object: object = sys.modules.get(source or "")
    for part in name.split("."):
        named_object = getattr(named_object, part, None)
    return f"{source}:{name}" if named_object is module and source != "__main__" else name


def _format_arguments(arguments: Arguments) -> dict[str, str]:
    return {name: format_argument(value) for name, value in arguments.items()}

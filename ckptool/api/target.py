"""Arguments and configuration -> ModuleTarget: the module for a checkpoint; opening paths."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare import Loading
from ckptool.config import Config, load_config
from ckptool.errors import UsageError
from ckptool.formats import open_checkpoint, open_stream
from ckptool.formats.limits import Limits
from ckptool.locations import Location, RemotePath, locate
from ckptool.model import Checkpoint, ModuleState

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from ckptool.modules import ModuleSpec
    from ckptool.verification.facts import Exercise
    from ckptool.verification.sides import Side

PathLike = str | Path | RemotePath
"""A str may name a protocol: "s3://bucket/key"."""
Arguments = Mapping[str, object]


class Target(Struct, frozen=True):
    """A module to compare a checkpoint with, and how to build it."""

    module: "str | nn.Module"
    kwargs: Arguments = {}
    at: str | None = None
    """Dotted place of the state in the file; None takes the best match."""
    search: tuple[Path, ...] = ()
    """Folders to import the module from, besides the current directory."""
    inputs: tuple[str, ...] = ()
    """Input specs of the configuration."""

    def hyper(self, checkpoint: Checkpoint) -> Arguments:
        """Return the constructor arguments in the file; {} if `kwargs` are set, which win."""
        return {} if self.kwargs else hyper_parameters(checkpoint)

    def spec(self, defaults: Arguments) -> "ModuleSpec":
        """Return the spec to build the module; of `defaults`, only accepted arguments are used."""
        from ckptool.modules import ModuleSpec

        if not isinstance(self.module, str):
            return ModuleSpec(type(self.module).__qualname__)
        return ModuleSpec(self.module, self.kwargs, (Path.cwd(), *self.search), defaults)

    def fitting(self, module: "str | nn.Module", hyper: Arguments) -> "ModuleSpec":
        """Return the spec of another module; only arguments that it accepts are used."""
        return replace(self, module=module, kwargs={}).spec({**hyper, **self.kwargs})

    def built(self, checkpoint: Checkpoint) -> "ModuleSpec | nn.Module":
        """Return the live module, or the spec of the named one with the checkpoint's arguments."""
        if not isinstance(self.module, str):
            return self.module
        return self.spec(self.hyper(checkpoint))

    def examined(self, defaults: Arguments) -> ModuleState:
        """Return the description of the module's state, saved or not.

        Raises:
            ModuleError: it cannot be imported or built.
        """
        from ckptool.modules import describe, examine

        if isinstance(self.module, str):
            return examine(self.spec(defaults))
        return describe(self.module, type(self.module).__qualname__)

    def exercised(
        self, defaults: Arguments, state: ModuleState, inputs: object
    ) -> "tuple[ModuleState, tuple[Exercise, ...]]":
        """Run forward and return the ModuleInfo with its effects; unchanged without inputs."""
        if inputs is None:
            return state, ()
        from ckptool.verification.exercise import exercise, informed
        from ckptool.verification.inputs import given
        from ckptool.verification.instances import maker

        with maker(self.module, self.spec(defaults)) as made:
            found = exercise(made, given(inputs))
        return informed(state, found), (found,)

    def side(self, checkpoint: Checkpoint) -> "AbstractContextManager[Side]":
        """Return a context manager that gives the VerificationTarget of this module."""
        from ckptool.verification.sides import side

        return side(checkpoint, self.module, self.spec(self.hyper(checkpoint)), self.at)

    def side_of(
        self, module: "str | nn.Module", checkpoint: Checkpoint
    ) -> "AbstractContextManager[Side]":
        """Return a context manager that gives the VerificationTarget of an older module."""
        from ckptool.verification.sides import side

        spec = self.fitting(module, hyper_parameters(checkpoint))
        return side(checkpoint, module, spec, None)


class Named(Struct, frozen=True):
    """Module options of a command; None leaves the choice to the configuration."""

    module: "str | nn.Module | None" = None
    kwargs: Arguments | None = None
    at: str | None = None

    @property
    def target(self) -> Target | None:
        return None if self.module is None else Target(self.module, self.kwargs or {}, self.at)


def find_target(path: Location, named: Named, config: Config | None) -> Target | None:
    """Return the module in the options, else the configured one for `path`, else None."""
    if named.target is not None:
        return named.target
    settings = config or load_config(Path.cwd())
    entry = settings.entry(path)
    if entry is None:
        return None
    return Target(
        entry.module,
        {**entry.kwargs, **(named.kwargs or {})},
        named.at if named.at is not None else entry.at,
        (settings.directory,),
        entry.inputs,
    )


def need_target(path: Location, named: Named, config: Config | None) -> Target:
    """Return the result of `find_target`.

    Raises:
        UsageError: neither the options nor the configuration name a module.
    """
    target = find_target(path, named, config)
    if target is None:
        raise UsageError(
            f"{path}: no module to compare it with. Name one with -m package.module:Name, or in "
            "[[tool.ckptool.models]] of pyproject.toml or ckptool.toml, or give a second checkpoint"
        )
    return target


def opened(path: PathLike, limits: Limits) -> Checkpoint:
    """Describe the checkpoint at `path`; "-" is standard input.

    Raises:
        ReadError: it cannot be read.
        UsageError: `path` is not a path, or empty.
    """
    _check_path(path)
    if str(path) == "-":
        return open_stream(sys.stdin.buffer, limits)
    return open_checkpoint(locate(path), limits)


def _check_path(path: object) -> None:
    """Reject values that callers pass by mistake.

    Raises:
        UsageError: it is no path (a module, a state_dict), or "".
    """
    if not isinstance(path, PathLike):
        given = f"a {type(path).__name__} was given"
        raise UsageError(f"a checkpoint is named by its path; {given}. A live module is module=...")
    if str(path) == "":
        raise UsageError("the path of a checkpoint is empty")


def written_here(path: PathLike) -> Path:
    """Return an output path as a local Path.

    Raises:
        UsageError: it is remote.
    """
    place = locate(path)
    if isinstance(place, RemotePath):
        reason = "nothing is written to a remote place: write to a file here, and upload that"
        raise UsageError(f"{place}: {reason}")
    return place


def hyper_parameters(checkpoint: Checkpoint) -> Arguments:
    """Return a Lightning checkpoint's `hyper_parameters` if they are plain data, else {}."""
    for entry in checkpoint.entries:
        if entry.at == "hyper_parameters" and isinstance(entry.value, dict):
            return {k: v for k, v in entry.value.items() if isinstance(k, str)}
    return {}


def notes_on(found: Loading, at: str | None, hyper: Arguments) -> tuple[str, ...]:
    """Return notes about implicit choices: the state in the file, and constructor arguments."""
    notes: list[str] = []
    if at is None and (found.state.at or len(found.checkpoint.states) > 1):
        states = [s for s in found.checkpoint.states if s is not found.state]
        others = [s.at or "." for s in states if s.role != "tensors"]
        beside = f"; the file also has {', '.join(others[:3])}" if others else ""
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        notes.append(f"compared at `{found.state.at or '.'}`, the best match{beside}{more}")
    if hyper:
        notes.append(f"constructor arguments that fit were taken from the file: {', '.join(hyper)}")
    return tuple(notes)

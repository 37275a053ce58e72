"""What a command is pointed at: a checkpoint, the module that it meets, and how that is built."""

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
    """Which module a checkpoint is compared with, and how it is built."""

    module: "str | nn.Module"
    kwargs: Arguments = {}
    at: str | None = None
    """Place of the state in the file; None is the best match."""
    search: tuple[Path, ...] = ()
    """Where the module may be imported from, besides the current directory."""
    inputs: tuple[str, ...] = ()
    """What forward takes, as the configuration says it."""

    def hyper(self, checkpoint: Checkpoint) -> Arguments:
        """Return the file's own constructor arguments: they count where none were given."""
        return {} if self.kwargs else hyper_parameters(checkpoint)

    def spec(self, defaults: Arguments) -> "ModuleSpec":
        """Return how the module is built; of `defaults` it takes those that it knows."""
        from ckptool.modules import ModuleSpec

        if not isinstance(self.module, str):
            return ModuleSpec(type(self.module).__qualname__)
        return ModuleSpec(self.module, self.kwargs, (Path.cwd(), *self.search), defaults)

    def fitting(self, module: "str | nn.Module", hyper: Arguments) -> "ModuleSpec":
        """Return how another module is built: of these arguments it gets those that it knows."""
        return replace(self, module=module, kwargs={}).spec({**hyper, **self.kwargs})

    def built(self, checkpoint: Checkpoint) -> "ModuleSpec | nn.Module":
        """Return the live module, or its name, with the checkpoint's own arguments."""
        if not isinstance(self.module, str):
            return self.module
        return self.spec(self.hyper(checkpoint))

    def examined(self, defaults: Arguments) -> ModuleState:
        """Return the state that the module holds, saved or not.

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
        """Run the module where there are inputs, and return what that adds to its state."""
        if inputs is None:
            return state, ()
        from ckptool.verification.exercise import exercise, informed
        from ckptool.verification.inputs import given
        from ckptool.verification.instances import maker

        with maker(self.module, self.spec(defaults)) as made:
            found = exercise(made, given(inputs))
        return informed(state, found), (found,)

    def side(self, checkpoint: Checkpoint) -> "AbstractContextManager[Side]":
        """Return what verifying needs of a module."""
        from ckptool.verification.sides import side

        return side(checkpoint, self.module, self.spec(self.hyper(checkpoint)), self.at)

    def side_of(
        self, module: "str | nn.Module", checkpoint: Checkpoint
    ) -> "AbstractContextManager[Side]":
        """Return what verifying needs of the module that came before this one."""
        from ckptool.verification.sides import side

        spec = self.fitting(module, hyper_parameters(checkpoint))
        return side(checkpoint, module, spec, None)


class Named(Struct, frozen=True):
    """What is said of a module; what is None is left to the configuration."""

    module: "str | nn.Module | None" = None
    kwargs: Arguments | None = None
    at: str | None = None

    @property
    def target(self) -> Target | None:
        return None if self.module is None else Target(self.module, self.kwargs or {}, self.at)


def find_target(path: Location, named: Named, config: Config | None) -> Target | None:
    """Return the module that was named, or the one the configuration names for `path`, or None."""
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
    """Return what `find_target` does.

    Raises:
        UsageError: no module is named anywhere.
    """
    target = find_target(path, named, config)
    if target is None:
        raise UsageError(
            f"{path}: no module to compare it with. Name one with -m package.module:Name, or in "
            "[[tool.ckptool.models]] of pyproject.toml or ckptool.toml, or give a second checkpoint"
        )
    return target


def opened(path: PathLike, limits: Limits) -> Checkpoint:
    """Describe the checkpoint at `path`; "-" is standard input."""
    _check_path(path)
    if str(path) == "-":
        return open_stream(sys.stdin.buffer, limits)
    return open_checkpoint(locate(path), limits)


def _check_path(path: object) -> None:
    """Refuse what callers give in the place of a path.

    Raises:
        UsageError: it is a module, a state_dict, or the empty text.
    """
    if not isinstance(path, PathLike):
        given = f"a {type(path).__name__} was given"
        raise UsageError(f"a checkpoint is named by its path; {given}. A live module is module=...")
    if str(path) == "":
        raise UsageError("the path of a checkpoint is empty")


def written_here(path: PathLike) -> Path:
    """Return the path of something that is to be written.

    Raises:
        UsageError: it is remote.
    """
    place = locate(path)
    if isinstance(place, RemotePath):
        reason = "nothing is written to a remote place: write to a file here, and upload that"
        raise UsageError(f"{place}: {reason}")
    return place


def hyper_parameters(checkpoint: Checkpoint) -> Arguments:
    """Return a Lightning checkpoint's own constructor arguments, where they are plain data."""
    for entry in checkpoint.entries:
        if entry.at == "hyper_parameters" and isinstance(entry.value, dict):
            return {k: v for k, v in entry.value.items() if isinstance(k, str)}
    return {}


def notes_on(found: Loading, at: str | None, hyper: Arguments) -> tuple[str, ...]:
    """Return what was decided without being asked: the place in the file, and its arguments."""
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

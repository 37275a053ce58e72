"""Commands `audit` (module without a checkpoint) and `verify` (checkpoint run in its module)."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool import report
from ckptool.api.drawing import draw_loading, draw_module
from ckptool.api.refusing import refuse, refuse_negative
from ckptool.api.target import Arguments, Named, PathLike, Target, need_target, notes_on, opened
from ckptool.config import Config
from ckptool.errors import UsageError
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.locations import locate
from ckptool.model import Checkpoint, ModuleState
from ckptool.policy import Policy, judge
from ckptool.reporting.checking import audited, verified
from ckptool.rules import run

if TYPE_CHECKING:
    from torch import nn

    from ckptool.verification.facts import Usage
    from ckptool.verification.sides import Side


def audit(
    module: "str | nn.Module | None" = None,
    *,
    kwargs: Mapping[str, object] | None = None,
    inputs: object = None,
    fresh: "Callable[[], nn.Module] | None" = None,
    policy: Policy | None = None,
    pictures: bool = False,
) -> report.AuditReport:
    """Report the state of a module that its state_dict lacks; with `inputs`, also run forward.

    A live module is compared with a fresh instance that has its state_dict loaded: the differences
    are what a save loses.

    Args:
        module: "package.module:Name" or a live module, trained or not.
        kwargs: constructor arguments; for a live module, the arguments it was built with.
        inputs: as for `verify`.
        fresh: function that builds a module like the live one, if `kwargs` do not determine it.
        policy: reported findings, and the level from which they fail.
        pictures: include the values of small buffers and unsaved tensors, for drawing.

    Raises:
        ModuleError: the module cannot be imported or built.
        UsageError: no module is named, or the inputs are invalid.
    """
    if module is None:
        raise UsageError("no module is named: -m package.module:Name")
    target = Target(module, kwargs or {})
    state, usages = _state(target, kwargs, fresh)
    state, exercises = target.exercised({}, state, inputs)
    said = audited(state, judge(run([state, *exercises, *usages]), policy or Policy()))
    return draw_module(said, state) if pictures else said


def _state(
    target: Target, kwargs: Arguments | None, fresh: "Callable[[], nn.Module] | None"
) -> "tuple[ModuleState, tuple[Usage, ...]]":
    """Return a module's description, and for a live module its changes since construction."""
    if isinstance(target.module, str):
        refuse(
            {"fresh=": fresh is not None}, "builds a module like a live one: a name says itself how"
        )
        return target.examined({}), ()
    from ckptool.verification import lived

    usage = lived.since_built(target.module, kwargs, fresh)
    return lived.informed(target.examined({}), usage), (usage,)


def verify(  # noqa: PLR0913
    path: PathLike,
    *,
    module: "str | nn.Module | None" = None,
    kwargs: Mapping[str, object] | None = None,
    at: str | None = None,
    device: str = "auto",
    against: PathLike | None = None,
    old_module: "str | nn.Module | None" = None,
    inputs: object = None,
    tolerance: float | None = None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
    config: Config | None = None,
    pictures: bool = False,
) -> report.VerifyReport:
    """Load a checkpoint, run its module, and compare outputs with those of an older checkpoint.

    Args:
        path: the checkpoint.
        module: "package.module:Name" or a live module; None takes the configuration's.
        kwargs: constructor arguments.
        at: dotted place of the state in the file ("state_dict"); None takes the best match.
        device: "auto", "cuda", "cuda:1", "simulated" or "cpu".
        against: the old checkpoint, whose module must compute the same outputs.
        old_module: the module of `against`; None takes the same module.
        inputs: arguments of forward: specs such as "float32[2,6,3]", or "package.module:function",
            or the values themselves; None takes those of the configuration or the module.
        tolerance: absolute and relative; None is exact on one device, and the dtype's default
            across devices.
        policy: reported findings, and the level from which they fail.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.
        pictures: read the values of small buffers, for drawing.

    Raises:
        ReadError: a file cannot be read.
        ModuleError: a module cannot be imported or built.
        UsageError: no module is named, the device does not exist, or the inputs are invalid.
    """
    from ckptool.verification import levels, running
    from ckptool.verification.inputs import given

    lone = old_module is not None and against is None
    refuse({"--old-module": lone}, "is the module of an old checkpoint: name that with --against")
    refuse_negative({"--tolerance": tolerance})
    place = locate(path)
    target = need_target(place, Named(module, kwargs, at), config)
    where = running.choose(device)
    with ExitStack() as stack:
        new = stack.enter_context(target.side(opened(place, limits)))
        old = None
        if against is not None:
            old = stack.enter_context(_older(target, old_module, opened(against, limits)))
        taken = given(target.inputs if inputs is None else inputs)
        done = levels.verify(new, where, taken, old, tolerance)
    found = judge(run([done], place), policy or Policy(), differs=bool(done.failed))
    notes = notes_on(new.loading, target.at, {})
    said = verified(done, new.loading.state.at, found, notes)
    return draw_loading(said, new.loading) if pictures else said


def _older(
    target: Target, module: "str | nn.Module | None", checkpoint: Checkpoint
) -> "AbstractContextManager[Side]":
    """Return a context manager giving the old checkpoint in `module`, or in the current module."""
    if module is not None:
        return target.side_of(module, checkpoint)
    return replace(target, at=None).side(checkpoint)

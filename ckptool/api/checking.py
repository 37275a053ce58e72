"""Look at a module alone, or run it on a checkpoint."""

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
    """Report everything a module holds that a state_dict does not; with `inputs`, by running it.

    A live module is compared with a fresh one that has its state_dict loaded: what differs then is
    what a save loses.

    Args:
        module: "package.module:Name" or a live module, trained or not.
        kwargs: constructor arguments; of a live module, those that it was built with.
        inputs: as for `verify`.
        fresh: what builds a module like the live one, where `kwargs` do not say it.
        policy: which findings are reported, and from which level on they fail.
        pictures: whether it has the values of small buffers and unsaved tensors, to be drawn.

    Raises:
        ModuleError: the module cannot be imported or built.
        UsageError: no module is named, or the inputs make no sense.
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
    """Return what a module holds, and of a live one what became of it since it was built."""
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
    """Load a checkpoint, run its module, and compare it with what it was before.

    Args:
        path: the checkpoint.
        module: "package.module:Name" or a live module; without it the configuration names one.
        kwargs: constructor arguments.
        at: place of the state in the file ("state_dict"); without it the best match is taken.
        device: "auto", "cuda", "cuda:1", "simulated" or "cpu".
        against: the old checkpoint, whose module has to compute the same.
        old_module: the module of `against`; without it the same one.
        inputs: what forward takes: words such as "float32[2,6,3]", or "package.module:function",
            or the values themselves; without it the configuration or the module says so.
        tolerance: absolute and relative; without it none on one device, across that of the dtype.
        policy: which findings are reported, and from which level on they fail.
        limits: bounds on what a file may cost.
        config: the configuration; without it the nearest one from the current directory up.
        pictures: read the values of small buffers, so that they can be drawn.

    Raises:
        ReadError: a file cannot be read.
        ModuleError: a module cannot be imported or built.
        UsageError: no module is named, there is no such device, or the inputs make no sense.
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
    """Return the side of the old checkpoint: in its own module, or else in today's."""
    if module is not None:
        return target.side_of(module, checkpoint)
    return replace(target, at=None).side(checkpoint)

"""ModuleSpec or live nn.Module -> ModuleInfo: import, build, probe, describe."""

from typing import TYPE_CHECKING

from ckptool.errors import ModuleError
from ckptool.model import ModuleState, Skipped
from ckptool.modules.build import Builds, build, build_under, random_state
from ckptool.modules.probe import Following, constancies, duplicate, following, shared
from ckptool.modules.state import Evidence, capture
from ckptool.modules.target import ModuleSpec, importable, resolve
from ckptool.modules.usercode import UserCodeError, user_code
from ckptool.modules.walk import Walk, walk

if TYPE_CHECKING:
    from torch import nn


def examine(spec: ModuleSpec) -> ModuleState:
    """Import and build the module of `spec`, and describe all its state.

    Raises:
        ModuleError: it cannot be imported or built, or its state_dict() raises.
    """
    return examine_live(spec)[0]


def examine_live(spec: ModuleSpec) -> "tuple[ModuleState, nn.Module]":
    """Return the result of `examine_module`, and the module, with parameters on meta if possible.

    Raises:
        ModuleError: it cannot be imported or built, or its state_dict() raises.
    """
    from torch import nn

    with importable(spec), random_state():
        found = resolve(spec)
        if isinstance(found, nn.Module):
            return _instance(spec, found), found
        if not callable(found):
            raise ModuleError(
                spec.target,
                f"is a {type(found).__name__}: name a class, a function that returns a module, "
                "or an instance",
            )
        builds = build(spec, found)
        return _built(spec, builds), builds.first.module


def replay(spec: ModuleSpec, seed: int) -> "nn.Module":
    """Build the module of `spec` with real parameters under `seed`.

    Raises:
        ModuleError: it cannot be imported or built, or it is an instance.
    """
    with importable(spec), random_state():
        found = resolve(spec)
        if not callable(found):
            raise ModuleError(spec.target, "is an instance: only a class can be built under a seed")
        return build_under(spec, found, seed)


def describe(module: "nn.Module", target: str) -> ModuleState:
    """Describe all state of a live module without changing it.

    Raises:
        ModuleError: it cannot be examined, or its state_dict() raises.
    """
    with random_state():
        held = _walked(module, target)
        moves, skipped = _copy_followed(module, held)
        reason = Skipped("constancy", "an instance cannot be built again: name its class to know")
        evidence = Evidence(following=moves, skipped=(reason, *skipped))
        return capture(module, held, target, evidence)


def _instance(spec: ModuleSpec, module: "nn.Module") -> ModuleState:
    if spec.kwargs:
        raise ModuleError(spec.target, "is an instance: it takes no arguments")
    return describe(module, spec.target)


def _built(spec: ModuleSpec, builds: Builds) -> ModuleState:
    first, second = builds.first, builds.second
    values = constancies(builds)
    if second is None:
        moves, skipped = _copy_followed(first.module, first.held)
    elif shared(builds):
        moves, skipped = _copy_followed(second.module, second.held)
    else:
        moves, skipped = following(second.module)
    evidence = Evidence(
        constancy=values,
        following=moves,
        twins=first.twins,
        places=first.places,
        skipped=(*builds.skipped, *skipped),
    )
    return capture(first.module, first.held, spec.target, evidence)


def _walked(module: "nn.Module", target: str) -> Walk:
    if isinstance(module, type):
        name = f"{module.__module__}:{module.__qualname__}"
        raise ModuleError(
            module.__qualname__, f"is a class: give an instance, or its name {name!r}"
        )
    if not hasattr(module, "named_modules"):
        raise ModuleError(target, "is no nn.Module: give the module itself, or its name")
    try:
        with user_code():
            return walk(module)
    except UserCodeError as error:
        raise ModuleError(target, f"looking through it raised {error}") from error


def _copy_followed(
    module: "nn.Module", held: Walk
) -> tuple[dict[str, Following], tuple[Skipped, ...]]:
    """Probe a copy of `module` on meta: the user's module must not be moved."""
    try:
        copied = duplicate(module, held)
    except UserCodeError as error:
        return {}, (Skipped("what follows .to() and .half()", f"copying it raised {error}"),)
    return following(copied)

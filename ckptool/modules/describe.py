"""ModuleSpec or live nn.Module -> ModuleInfo: import, build, probe, describe."""

from typing import TYPE_CHECKING

from ckptool.errors import ModuleError
from ckptool.model import ModuleInfo, Skipped
from ckptool.modules.build import BuildPair, build_twice, build_with_seed, preserve_random_state
from ckptool.modules.import_target import ModuleSpec, prepend_search_paths, resolve_target
from ckptool.modules.module_info import ProbeResults, build_module_info
from ckptool.modules.move_probe import (
    MoveBehavior,
    compare_builds,
    copy_to_meta,
    probe_moves,
    share_objects,
)
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import ModuleWalk, walk_module

if TYPE_CHECKING:
    from torch import nn


def examine_module(spec: ModuleSpec) -> ModuleInfo:
    """Import and build the module of `spec`, and describe all its state.

    Raises:
        ModuleError: it cannot be imported or built, or its state_dict() raises.
    """
    return examine_and_build(spec)[0]


def examine_and_build(spec: ModuleSpec) -> "tuple[ModuleInfo, nn.Module]":
    """Return the result of `examine_module`, and the module, with parameters on meta if possible.

    Raises:
        ModuleError: it cannot be imported or built, or its state_dict() raises.
    """
    from torch import nn

    with prepend_search_paths(spec), preserve_random_state():
        target_object = resolve_target(spec)
        if isinstance(target_object, nn.Module):
            return _describe_instance(spec, target_object), target_object
        if not callable(target_object):
            raise ModuleError(
                spec.target,
                f"is a {type(target_object).__name__}: give a class, a function that returns a "
                "module, or an instance",
            )
        builds = build_twice(spec, target_object)
        return _describe_builds(spec, builds), builds.first.module


def rebuild_with_seed(spec: ModuleSpec, seed: int) -> "nn.Module":
    """Build the module of `spec` with real parameters under `seed`.

    Raises:
        ModuleError: it cannot be imported or built, or it is an instance.
    """
    with prepend_search_paths(spec), preserve_random_state():
        target_object = resolve_target(spec)
        if not callable(target_object):
            raise ModuleError(spec.target, "is an instance: only a class can be built with a seed")
        return build_with_seed(spec, target_object, seed)


def describe_module(module: "nn.Module", target: str) -> ModuleInfo:
    """Describe all state of a live module without changing it.

    Raises:
        ModuleError: it cannot be examined, or its state_dict() raises.
    """
    with preserve_random_state():
        module_walk = _walk_user_module(module, target)
        move_behaviors, skipped = _probe_copy(module, module_walk)
        not_rebuilt = Skipped("constancy", "an instance cannot be rebuilt: give its class")
        probe_results = ProbeResults(move_behavior=move_behaviors, skipped=(not_rebuilt, *skipped))
        return build_module_info(module, module_walk, target, probe_results)


def _describe_instance(spec: ModuleSpec, module: "nn.Module") -> ModuleInfo:
    if spec.kwargs:
        raise ModuleError(spec.target, "is an instance: it takes no arguments")
    return describe_module(module, spec.target)


def _describe_builds(spec: ModuleSpec, builds: BuildPair) -> ModuleInfo:
    first, second = builds.first, builds.second
    constancy = compare_builds(builds)
    if second is None:
        move_behaviors, skipped = _probe_copy(first.module, first.walk)
    elif share_objects(builds):
        move_behaviors, skipped = _probe_copy(second.module, second.walk)
    else:
        move_behaviors, skipped = probe_moves(second.module)
    probe_results = ProbeResults(
        constancy=constancy,
        move_behavior=move_behaviors,
        meta_parameters=first.meta_parameters,
        assignment_locations=first.assignment_locations,
        skipped=(*builds.skipped, *skipped),
    )
    return build_module_info(first.module, first.walk, spec.target, probe_results)


def _walk_user_module(module: "nn.Module", target: str) -> ModuleWalk:
    if isinstance(module, type):
        name = f"{module.__module__}:{module.__qualname__}"
        raise ModuleError(
            module.__qualname__, f"is a class: give an instance, or its name {name!r}"
        )
    if not hasattr(module, "named_modules"):
        raise ModuleError(target, "is not an nn.Module: give the module itself, or its name")
    try:
        with user_code():
            return walk_module(module)
    except UserCodeError as error:
        raise ModuleError(target, f"walking through it raised {error}") from error


def _probe_copy(
    module: "nn.Module", module_walk: ModuleWalk
) -> tuple[dict[str, MoveBehavior], tuple[Skipped, ...]]:
    """Probe a copy of `module` on meta: the user's module must not be moved."""
    try:
        module_copy = copy_to_meta(module, module_walk)
    except UserCodeError as error:
        return {}, (Skipped("what follows .to() and .half()", f"copying it raised {error}"),)
    return probe_moves(module_copy)

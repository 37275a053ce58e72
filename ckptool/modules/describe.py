"""ModuleSpec or live nn.Module -> ModuleInfo: import, build, probe, describe."""

from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec.structs import replace as replace_field

from ckptool.errors import ModuleError
from ckptool.model import CONSTANCY_CHECK, Constancy, Kind, ModuleInfo, Skipped
from ckptool.modules.build import (
    REAL_BUILD_BYTES,
    BuildPair,
    build_twice,
    build_with_seed,
    count_parameter_bytes,
    preserve_random_state,
)
from ckptool.modules.import_target import (
    ModuleSpec,
    match_defaults,
    prepend_search_paths,
    resolve_target,
)
from ckptool.modules.module_info import ProbeResults, build_module_info
from ckptool.modules.move_probe import (
    MoveBehavior,
    compare_builds,
    compare_with_live,
    copy_to_meta,
    probe_moves,
    share_objects,
)
from ckptool.modules.target.rebuild import (
    UNKNOWN_ARGUMENTS,
    ModuleRebuild,
    builds_other_state,
    collect_key_shapes,
    find_rebuild,
)
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import ModuleWalk, walk_module

if TYPE_CHECKING:
    from torch import nn


def examine_module(spec: ModuleSpec) -> ModuleInfo:
    """Build the module of `spec`, or take the live one, and describe all its state.

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
        module_info = _describe_builds(spec, builds)
        file_arguments = tuple(
            name for name in match_defaults(spec, target_object) if name not in spec.given_names
        )
        return replace_field(module_info, file_arguments=file_arguments), builds.first.module


def rebuild_with_seed(spec: ModuleSpec, seed: int) -> "nn.Module":
    """Build the module of `spec`, or one like the live one, with real parameters under `seed`.

    Raises:
        ModuleError: it cannot be imported or built, or the arguments of an instance are not known.
    """
    from torch import nn

    with prepend_search_paths(spec), preserve_random_state():
        target_object = resolve_target(spec)
        if not isinstance(target_object, nn.Module):
            return build_with_seed(spec, target_object, seed)
        rebuild = find_rebuild(target_object, spec.kwargs or None, spec.fresh)
        if rebuild is None or rebuild.is_guess:
            reason = f"is an instance: to build it with a seed, {UNKNOWN_ARGUMENTS}"
            raise ModuleError(spec.target, reason)
        return build_with_seed(replace(spec, kwargs=rebuild.kwargs), rebuild.function, seed)


def describe_module(module: "nn.Module", target: str) -> ModuleInfo:
    """Describe all state of a live module without changing it, and without building another.

    Raises:
        ModuleError: it cannot be examined, or its state_dict() raises.
    """
    with preserve_random_state():
        module_walk = _walk_user_module(module, target)
        reason = "an instance cannot be rebuilt: give its class"
        return _describe_walk(module, module_walk, target, {}, (Skipped(CONSTANCY_CHECK, reason),))


def _describe_instance(spec: ModuleSpec, module: "nn.Module") -> ModuleInfo:
    """Describe a live module; what its constructor makes again is known where it can be rebuilt."""
    if spec.kwargs and spec.python_object is None:
        raise ModuleError(spec.target, "is an instance: it takes no arguments")
    module_walk = _walk_user_module(module, spec.target)
    constancy, skipped = _compare_with_rebuilt(spec, module, module_walk)
    return _describe_walk(module, module_walk, spec.target, constancy, skipped)


def _describe_walk(
    module: "nn.Module",
    module_walk: ModuleWalk,
    target: str,
    constancy: dict[str, Constancy],
    skipped: tuple[Skipped, ...],
) -> ModuleInfo:
    move_behaviors, skipped_moves = _probe_copy(module, module_walk)
    probe_results = ProbeResults(
        constancy=constancy, move_behavior=move_behaviors, skipped=(*skipped, *skipped_moves)
    )
    return build_module_info(module, module_walk, target, probe_results)


def _compare_with_rebuilt(
    spec: ModuleSpec, module: "nn.Module", module_walk: ModuleWalk
) -> tuple[dict[str, Constancy], tuple[Skipped, ...]]:
    """Build two modules like a live one; return path -> Constancy, or why it is not known."""
    if all(t.is_registered and t.kind is Kind.PARAMETER for t in module_walk.tensors):
        return {}, ()
    rebuild = find_rebuild(module, spec.kwargs or None, spec.fresh)
    reason = UNKNOWN_ARGUMENTS if rebuild is None else _explain_misfit(rebuild, module, module_walk)
    if rebuild is None or reason:
        return {}, (Skipped(CONSTANCY_CHECK, reason),)
    build_spec = replace(spec, kwargs=rebuild.kwargs, defaults={})
    try:
        builds = build_twice(build_spec, rebuild.function)
        with user_code():
            built_state, state = builds.first.module.state_dict(), module.state_dict()
    except (ModuleError, UserCodeError) as error:
        return {}, (Skipped(CONSTANCY_CHECK, f"rebuilding it failed: {error}"),)
    if builds.first.module is module:
        return {}, (Skipped(CONSTANCY_CHECK, "fresh= returned the module itself, not a new one"),)
    if collect_key_shapes(built_state) != collect_key_shapes(state):
        reason = f"rebuilding it gives a different state_dict: {UNKNOWN_ARGUMENTS}"
        return {}, (Skipped(CONSTANCY_CHECK, reason),)
    constancy = compare_with_live(
        compare_builds(builds), builds.first.walk, module_walk, is_guess=rebuild.is_guess
    )
    return constancy, builds.skipped


def _explain_misfit(rebuild: ModuleRebuild, module: "nn.Module", module_walk: ModuleWalk) -> str:
    """Return why a module is not built with guessed arguments, "" if it is."""
    if not rebuild.is_guess:
        return ""
    if count_parameter_bytes(module_walk) > REAL_BUILD_BYTES:
        return f"its parameters are large; {UNKNOWN_ARGUMENTS}"
    if builds_other_state(rebuild, module):
        return f"rebuilding it gives a different state_dict: {UNKNOWN_ARGUMENTS}"
    return ""


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

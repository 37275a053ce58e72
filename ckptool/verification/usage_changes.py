"""nn.Module -> UsageChanges: state changed since construction that is not in the state_dict."""

import re
from collections.abc import Callable, Mapping
from typing import Final

import torch
from msgspec.structs import replace
from torch import nn

from ckptool.errors import ModuleError
from ckptool.model import CONSTANCY_CHECK, Constancy, ModuleInfo, Skipped
from ckptool.modules.build import SEEDS, preserve_random_state
from ckptool.modules.live.snapshot import ModuleSnapshot, find_added, find_mutated, take_snapshot
from ckptool.modules.source.source_analysis import SourceAnalysis
from ckptool.modules.target.rebuild import (
    UNKNOWN_ARGUMENTS,
    builds_other_state,
    collect_key_shapes,
    find_rebuild,
)
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.verification.levels.load import load_matching_tensors
from ckptool.verification.module_factory import ModuleFactory
from ckptool.verification.result import PythonChange, UsageChanges

SINCE_BLOCK_START: Final = "inside the with block"
_SINCE_CONSTRUCTION: Final = "since it was built"
_SKIPPED_CHECK: Final = "changes since the module was built"


def find_python_changes(
    old_snapshot: ModuleSnapshot, new_snapshot: ModuleSnapshot
) -> tuple[PythonChange, ...]:
    """Return the plain Python values that changed.

    Values that were None are left out: usually caches that are filled on first use.
    """
    return tuple(
        PythonChange(
            path,
            old_value.text,
            new_snapshot.python_values[path].text,
            old_value.is_bool,
            old_value.owner,
        )
        for path, old_value in old_snapshot.python_values.items()
        if path in new_snapshot.python_values
        and not old_value.is_none
        and new_snapshot.python_values[path].text != old_value.text
    )


def changes_between(
    target: str, old_snapshot: ModuleSnapshot, new_snapshot: ModuleSnapshot
) -> UsageChanges:
    """Return the changes between two snapshots of one module.

    Changes in modules with extra state (`get_extra_state`) are skipped: it may hold them.
    """
    constancies = dict.fromkeys(find_mutated(old_snapshot, new_snapshot), Constancy.MUTATED)
    constancies |= dict.fromkeys(find_added(old_snapshot, new_snapshot), Constancy.UNKNOWN)
    python_changes = find_python_changes(old_snapshot, new_snapshot)
    extra_state_paths = [path for path in constancies if path in new_snapshot.extra_state_paths]
    extra_state_paths += [
        change.path
        for change in python_changes
        if new_snapshot.python_values[change.path].has_extra_state
    ]
    unreadable_paths = [
        path
        for path, digest in old_snapshot.digests.items()
        if not digest and path in new_snapshot.digests
    ]
    return UsageChanges(
        target,
        SINCE_BLOCK_START,
        changed_values=tuple(
            change for change in python_changes if change.path not in extra_state_paths
        ),
        constancy={
            path: constancy
            for path, constancy in constancies.items()
            if path not in extra_state_paths
        },
        skipped=(
            *(
                Skipped(path, "its module saves extra state, which may contain it")
                for path in extra_state_paths
            ),
            *(Skipped(path, "its elements cannot be read") for path in unreadable_paths),
        ),
    )


def changes_since_construction(
    module: nn.Module,
    kwargs: Mapping[str, object] | None = None,
    fresh: Callable[[], nn.Module] | None = None,
) -> UsageChanges:
    """Compare a module with new instances that have its state_dict loaded; a save loses the rest.

    Two are built, with two seeds: state that differs between them is random, not changed by use.
    """
    target = type(module).__qualname__
    rebuild = find_rebuild(module, kwargs, fresh)
    if rebuild is None:
        return UsageChanges(
            target, _SINCE_CONSTRUCTION, skipped=(Skipped(_SKIPPED_CHECK, UNKNOWN_ARGUMENTS),)
        )
    if rebuild.is_guess and builds_other_state(rebuild, module):
        reason = f"rebuilding it gives a different state_dict: {UNKNOWN_ARGUMENTS}"
        return UsageChanges(target, _SINCE_CONSTRUCTION, skipped=(Skipped(_SKIPPED_CHECK, reason),))
    factory = ModuleFactory(target, build=rebuild.build_module)
    try:
        with preserve_random_state():
            first_snapshot, second_snapshot = (
                _reload_and_snapshot(factory, module, seed) for seed in SEEDS
            )
        with user_code():
            live_snapshot = take_snapshot(module)
    except (ModuleError, UserCodeError) as error:
        return UsageChanges(
            target, _SINCE_CONSTRUCTION, skipped=(Skipped(_SKIPPED_CHECK, str(error)),)
        )
    deterministic = replace(
        first_snapshot,
        python_values={
            path: value
            for path, value in first_snapshot.python_values.items()
            if path in second_snapshot.python_values
            and second_snapshot.python_values[path].text == value.text
        },
    )
    usage_changes = UsageChanges(
        target,
        _SINCE_CONSTRUCTION,
        changed_values=find_python_changes(deterministic, live_snapshot),
        constancy={
            path: _judge_constancy(
                digest, first_snapshot.digests.get(path), second_snapshot.digests.get(path)
            )
            for path, digest in live_snapshot.digests.items()
        },
    )
    return _drop_uncertain(usage_changes, module) if rebuild.is_guess else usage_changes


def _drop_uncertain(usage_changes: UsageChanges, module: nn.Module) -> UsageChanges:
    """Drop changes that other constructor arguments could explain as well.

    A change is kept if code that runs after construction assigns the attribute.
    """
    sources, members = SourceAnalysis(), dict(module.named_modules())
    uncertain_paths = {
        path
        for path in (
            *(change.path for change in usage_changes.changed_values),
            *(
                path
                for path, constancy in usage_changes.constancy.items()
                if constancy is Constancy.MUTATED
            ),
        )
        if not _find_assignment(path, members, sources)
    }
    if not uncertain_paths:
        return usage_changes
    return replace(
        usage_changes,
        changed_values=tuple(
            change for change in usage_changes.changed_values if change.path not in uncertain_paths
        ),
        constancy={
            path: Constancy.UNKNOWN if path in uncertain_paths else constancy
            for path, constancy in usage_changes.constancy.items()
        },
        skipped=(
            *usage_changes.skipped,
            Skipped(_SKIPPED_CHECK, f"{len(uncertain_paths)} values: {UNKNOWN_ARGUMENTS}"),
        ),
    )


def _find_assignment(path: str, members: Mapping[str, nn.Module], sources: SourceAnalysis) -> str:
    steps = re.split(r"\.(?![^\[]*\])", path)
    owner_depth = next(
        depth for depth in range(len(steps) - 1, -1, -1) if ".".join(steps[:depth]) in members
    )
    attribute = steps[owner_depth].partition("[")[0]
    return sources.find_write(type(members[".".join(steps[:owner_depth])]), attribute)


def with_usage(module_info: ModuleInfo, usage_changes: UsageChanges) -> ModuleInfo:
    """Return the ModuleInfo with the constancy of unsaved state taken from `usage_changes`."""
    module_tensors = {
        key: module_tensor
        if module_tensor.is_saved or key not in usage_changes.constancy
        else replace(module_tensor, constancy=usage_changes.constancy[key])
        for key, module_tensor in module_info.tensors.items()
    }
    skipped = [entry for entry in module_info.skipped if entry.what != CONSTANCY_CHECK]
    return replace(module_info, tensors=module_tensors, skipped=(*skipped, *usage_changes.skipped))


def keep_only_changed(module_info: ModuleInfo, usage_changes: UsageChanges) -> ModuleInfo:
    """Drop unsaved state that did not change, and observations that `watch` does not make."""
    module_tensors = {
        key: module_tensor
        for key, module_tensor in module_info.tensors.items()
        if module_tensor.is_saved or key in usage_changes.constancy
    }
    hidden_modules = {
        path: class_name
        for path, class_name in module_info.hidden_modules.items()
        if any(key.startswith(f"{path}.") for key in usage_changes.constancy)
    }
    return replace(
        module_info,
        tensors=module_tensors,
        hidden_modules=hidden_modules,
        none_buffers={},
        none_buffer_writes={},
    )


def _judge_constancy(
    live_digest: str, first_digest: str | None, second_digest: str | None
) -> Constancy:
    """Return the constancy of a value from its digests in the live module and two fresh ones.

    UNKNOWN if a digest is "" or None.
    """
    if not live_digest or not first_digest or not second_digest:
        return Constancy.UNKNOWN
    if first_digest != second_digest:
        return Constancy.RANDOM
    return Constancy.CONSTANT if first_digest == live_digest else Constancy.MUTATED


def _reload_and_snapshot(factory: ModuleFactory, module: nn.Module, seed: int) -> ModuleSnapshot:
    """Return the snapshot of a new instance with the state_dict of `module` loaded.

    Raises:
        ModuleError: it cannot be built, has other keys or shapes, or loading raises.
    """
    fresh_module = factory.create_module(seed)
    if fresh_module is module:
        raise ModuleError(factory.target, "fresh= returned the module itself, not a new one")
    with user_code():
        state_dict = module.state_dict()
        if collect_key_shapes(fresh_module.state_dict()) != collect_key_shapes(state_dict):
            raise ModuleError(
                factory.target, f"rebuilding it gives a different state_dict: {UNKNOWN_ARGUMENTS}"
            )
        dtype = _find_float_dtype(module)
        if dtype is not None and dtype != _find_float_dtype(fresh_module):
            fresh_module.to(dtype)
    load_matching_tensors(fresh_module, state_dict, factory.target)
    with user_code():
        return take_snapshot(fresh_module)


def _find_float_dtype(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first floating-point parameter, None if there is none."""
    return next(
        (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()),
        None,
    )

"""Edits and the keys that they add -> hooks with which old state_dicts load, and their tests."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from ckptool.commands.fixing.hook_files import name_module
from ckptool.commands.fixing.proofs import FixTarget, TargetProofs
from ckptool.errors import PlanError
from ckptool.loaders.folder_weights import open_weights
from ckptool.migration.codemod.attribute_fault import (
    EditPlan,
    FaultKind,
    HookRegistration,
    LineEdit,
    RefusedFix,
)
from ckptool.migration.codemod.project_files import decode_source
from ckptool.migration.hook.hook_check import (
    MAX_EXAMPLE_NUMEL,
    HookCheck,
    format_old_file_check,
)
from ckptool.migration.hook.hook_source import HookSubject, format_hook
from ckptool.migration.hook.hook_trace import HookTrace, TracedStep
from ckptool.migration.plan.key_operations import InjectTensor


class OldFileHooks(Struct, frozen=True):
    """Hooks of a project's classes."""

    registrations: dict[Path, list[HookRegistration]]
    """By the file of the class."""
    files: dict[Path, bytes]
    """New files: hooks, tests, and old state_dicts."""
    notes: tuple[str, ...] = ()


def find_hook_obstacles(
    plan: EditPlan, targets: Sequence[FixTarget], proofs: Sequence[TargetProofs]
) -> list[RefusedFix]:
    """Return the edits that add keys to a class in which no hook can be registered, and why."""
    import libcst as cst

    from ckptool.migration.codemod.hook_lines import add_hook_lines

    obstacles: list[RefusedFix] = []
    for (path, class_name), added in _collect_added_state(plan, targets, proofs).items():
        text = decode_source(plan.changes[path].new_content)[0]
        registration = HookRegistration(class_name, added.version, "import torch", "register")
        try:
            add_hook_lines(cst.parse_module(text), registration)
        except PlanError as error:
            obstacles += [
                RefusedFix(fault, f"no hook for old files can be registered: {error}")
                for edit in plan.edits
                for fault in edit.faults
                if (edit.path, edit.class_name) == (path, class_name)
                and not _is_constant_buffer(edit)
            ]
    return obstacles


def _is_constant_buffer(edit: LineEdit) -> bool:
    """Whether the edit makes a buffer with persistent=False, for which files need no hook."""
    return edit.fault.kind in {FaultKind.TENSOR, FaultKind.ARRAY} and not edit.fault.is_persistent


class _AddedState(Struct):
    """What an edited class saves from now on."""

    version: int = 2
    labels: list[str] = []
    """Modules that have such an object."""
    keys: dict[str, bool] = {}
    """Key without the module's prefix -> whether the constructor makes the same value each time."""


def build_old_file_hooks(
    plan: EditPlan,
    targets: Sequence[FixTarget],
    proofs: Sequence[TargetProofs],
) -> OldFileHooks:
    """Return a hook for each edited class whose state_dict has new keys.

    Args:
        plan: the edits.
        targets: the modules, each with its faults that are edited.
        proofs: of the edits alone, which say what keys are new.

    Raises:
        PlanError: the file of a hook exists already.
    """
    classes = _collect_added_state(plan, targets, proofs)
    hook_paths = _name_hooks([*classes])
    registrations: dict[Path, list[HookRegistration]] = defaultdict(list)
    files: dict[Path, bytes] = {}
    for (path, class_name), added in classes.items():
        hook_path = hook_paths[path, class_name]
        is_packaged = (path.parent / "__init__.py").exists() or _is_in_package(path, targets)
        import_text = (
            f"from . import {hook_path.stem}" if is_packaged else f"import {hook_path.stem}"
        )
        function = f"{hook_path.stem}.register_upgrade_hook"
        registrations[path].append(
            HookRegistration(class_name, added.version, import_text, function)
        )
        files[hook_path] = _format_class_hook(class_name, added).encode()
    notes: list[str] = []
    for target in targets:
        own_paths = [
            hook_paths[name] for name, added in classes.items() if target.label in added.labels
        ]
        test_files = _build_test(target, own_paths[0]) if own_paths else {}
        if own_paths and not test_files:
            notes.append(f"no test of old files was written for {target.label}: it is large, or "
                         "not built by a name and literal arguments")  # fmt: skip
        if not test_files.keys() & files.keys():  # else another module has this test
            files |= test_files
    for path in files:
        if path.exists():
            raise PlanError(f"{path}: exists already, and would be replaced by --keep-old-files")
    if not files:
        notes.append("no hook is needed: files saved before have all keys")
    return OldFileHooks(dict(registrations), files, tuple(notes))


def _name_hooks(classes: list[tuple[Path, str]]) -> dict[tuple[Path, str], Path]:
    """Return the file of each class's hook: "upgrade_net.py", with its file's name if need be."""
    paths: dict[tuple[Path, str], Path] = {}
    for path, class_name in classes:
        name = _to_snake_case(class_name)
        alike = [
            other
            for other, other_name in classes
            if other.parent == path.parent and _to_snake_case(other_name) == name
        ]
        stem = f"{path.stem}_{name}" if len(alike) > 1 else name
        paths[path, class_name] = path.with_name(f"upgrade_{stem}.py")
    return paths


def _collect_added_state(
    plan: EditPlan, targets: Sequence[FixTarget], proofs: Sequence[TargetProofs]
) -> dict[tuple[Path, str], _AddedState]:
    edits = {(fault.location, fault.attribute): e for e in plan.edits for fault in e.faults}
    classes: dict[tuple[Path, str], _AddedState] = {}
    for target, target_proofs in zip(targets, proofs, strict=True):
        for fault in target.faults:
            edit = edits[fault.location, fault.attribute]
            if fault.kind is FaultKind.CREATED_TENSOR:
                continue
            path = fault.keys[0].partition("[")[0]
            prefix = path.removesuffix(fault.attribute)
            keys = [
                key.removeprefix(prefix)
                for key in target_proofs.new_keys
                if key == path or key.startswith(f"{path}.")
            ]
            if keys:
                added = classes.setdefault((edit.path, edit.class_name), _AddedState())
                added.labels.append(target.label)
                added.version = max(added.version, _find_version(target, prefix) + 1)
                added.keys |= dict.fromkeys(keys, _is_constant(target, edit))
    return classes


def _find_version(target: FixTarget, prefix: str) -> int:
    module_class = target.facts.module_info.modules.get(prefix.removesuffix("."))
    return (module_class.version if module_class else None) or 1


def _is_constant(target: FixTarget, edit: LineEdit) -> bool:
    tensors = target.facts.module_info.tensors.values()
    paths = {key.partition("[")[0] for key in edit.fault.keys}
    return all(
        module_tensor.constancy == "constant" and not module_tensor.written_at
        for module_tensor in tensors
        if module_tensor.key.partition("[")[0] in paths
    )


def _format_class_hook(class_name: str, added: _AddedState) -> str:
    steps = tuple(
        TracedStep(number, InjectTensor(key=key, source="constructor"), ())
        for number, key in enumerate(added.keys, 1)
    )
    assumed = [key for key, is_constant in added.keys.items() if not is_constant]
    note = (
        f"An old file has no value for {', '.join(assumed)}: "
        f"{'each' if len(assumed) > 1 else 'it'} stays as the constructor made it, as before."
    )
    subject = HookSubject(class_name, added.version, (note,) if assumed else ())
    return format_hook(HookTrace(steps, {}, is_recognizable=True, has_versions=True), subject)


def _build_test(target: FixTarget, hook_path: Path) -> dict[Path, bytes]:
    """Return the test of a module and the old state_dict that it loads; {} if there is none."""
    stem = hook_path.stem
    name = f"{stem}_old.pth"
    check = HookCheck(
        name_module(hook_path, target.label),
        name,
        "",
        target.label,
        target.facts.module_info.arguments,
    )
    if not target.run.keys:  # a state_dict without tensors is no checkpoint
        return {}
    states = open_weights(target.saved_before).states
    numel = sum(tensor.numel for state in states for tensor in state.tensors.values())
    if not check.can_build or numel > MAX_EXAMPLE_NUMEL or not states:
        return {}
    return {
        hook_path.with_name(f"test_{stem}.py"): format_old_file_check(check).encode(),
        hook_path.with_name(name): target.saved_before.read_bytes(),
    }


def _is_in_package(path: Path, targets: Sequence[FixTarget]) -> bool:
    """Whether the file is imported as a module of a package that has no __init__.py."""
    for target in targets:
        for fault in target.faults:
            module_name = fault.owner.rpartition(".")[0]
            if fault.file and Path(fault.file).resolve() == path and "." in module_name:
                return True
    return False


def _to_snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()

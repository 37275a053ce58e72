"""Live modules of a process -> what each holds that no state_dict has, and what of it changed."""

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import join_key
from ckptool.modules.live.snapshot import (
    ModuleSnapshot,
    PythonValue,
    find_added,
    find_mutated,
    list_unsaved_tensors,
    take_snapshot,
)
from ckptool.modules.tensors.elements import content_digest
from ckptool.modules.walk import FoundTensor
from ckptool.tracing.quiet import torch_unobserved
from ckptool.tracing.records import UnsavedValue
from ckptool.tracing.unsaved_values import (
    describe_elements,
    describe_unsaved_tensor,
    is_of_library,
    is_of_user,
    locate_assignment,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

_FLAT_SEGMENT: Final = "_fsdp_wrapped_module."
"""What FullyShardedDataParallel puts into the names of what it wraps."""
_SETTING_NAMES: Final = frozenset({"config", "hparams", "trainer", "generation_config"})
"""Attributes of frameworks' base classes that a script sets again in every run."""


class ModuleState(Struct, frozen=True):
    """State of a module at one point in time, outside of its state_dict."""

    snapshot: ModuleSnapshot
    texts: dict[str, str]
    """Path of a tensor or array -> its shape, dtype and distinct values."""


def iter_saved_tensors(module: "nn.Module") -> "Iterator[tuple[str, Tensor]]":
    """Yield (name, tensor) of what nn.Module.state_dict holds, with all names of a tied tensor.

    FullyShardedDataParallel joins parameters in a flat one. In the place of each is a tensor of its
    name and shape on meta, since its elements are on several ranks.
    """
    from torch import nn

    members = [
        (f"{prefix}.".replace(_FLAT_SEGMENT, "").rstrip("."), member)
        for prefix, member in nn.Module.named_modules(module, remove_duplicate=False)
    ]
    flat_parameters = [
        (prefix, handle.flat_param)
        for prefix, member in members
        if (handle := getattr(member, "_handle", None)) is not None
        and hasattr(getattr(handle, "flat_param", None), "_fqns")
    ]
    for prefix, flat_parameter in flat_parameters:
        yield from _iter_flat_parts(prefix, flat_parameter)
    for prefix, member in members:
        for name, parameter in () if flat_parameters else member._parameters.items():  # noqa: SLF001
            if parameter is not None:
                yield join_key(prefix, name), parameter
        for name, buffer in member._buffers.items():  # noqa: SLF001
            if buffer is not None and name not in member._non_persistent_buffers_set:  # noqa: SLF001
                yield join_key(prefix, name), buffer


def _iter_flat_parts(prefix: str, flat_parameter: Any) -> "Iterator[tuple[str, Tensor]]":
    import torch

    parts = zip(flat_parameter._fqns, flat_parameter._shapes, strict=False)  # noqa: SLF001
    for name, shape in parts:
        yield (
            join_key(prefix, name),
            torch.empty(shape, dtype=flat_parameter.dtype, device="meta"),
        )


class ModuleStates:
    """Modules that were built in this process, held weakly, with their state at that time."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[nn.Module], ModuleState | None]] = {}
        self._copies: dict[int, weakref.ref[nn.Module]] = {}
        self._arguments: dict[int, tuple[weakref.ref[nn.Module], dict[str, str] | None]] = {}

    def record_built(self, module: "nn.Module", arguments: dict[str, str] | None) -> None:
        """Record the state of a module whose construction has ended; parts of it are covered.

        A wrapper of torch (DistributedDataParallel, Sequential) changes nothing of its parts:
        of them, the state at their own construction counts.
        """
        with torch_unobserved():
            state = _take_state(module, list_unsaved_tensors(module))
        if is_of_library(type(module).__module__):
            parts = self._list_parts(module)
            state = _override_state(state, _join_states(parts)) if parts else state
        from torch import nn

        for part in nn.Module.modules(module):
            self._entries.pop(id(part), None)
        self._entries[id(module)] = (weakref.ref(module), state)
        self._arguments[id(module)] = (weakref.ref(module), arguments)

    def get_arguments(self, module: "nn.Module") -> dict[str, str] | None:
        """Return the constructor's arguments as literals; None if they are not all known."""
        reference, arguments = self._arguments.get(id(module), (lambda: None, None))
        return arguments if reference() is module else None

    def record_copied(self, module: "nn.Module") -> None:
        """Record a module that was copied or unpickled: its state counts from its first use."""
        self._copies[id(module)] = weakref.ref(module)
        self._entries[id(module)] = (weakref.ref(module), None)

    def is_copy(self, module: "nn.Module") -> bool:
        """Whether `module` was copied or unpickled."""
        reference = self._copies.get(id(module))
        return reference is not None and reference() is module

    def list_modules(self) -> "list[nn.Module]":
        """Return the live modules, each that is no part of another one by construction."""
        live = [(key, entry[0]()) for key, entry in list(self._entries.items())]
        for key, module in live:
            if module is None:
                self._entries.pop(key, None)
        return [module for _, module in live if module is not None]

    def note_added(self) -> None:
        """Record the tensors that a script has set on its modules, before it trains or loads.

        The next run sets them again, by the same line: only what changes later is lost.
        """
        for module in self.list_modules():
            baseline = self._entries[id(module)][1]
            if baseline is None:
                continue
            with torch_unobserved():
                tensors = [
                    found_tensor
                    for found_tensor in list_unsaved_tensors(module)
                    if found_tensor.path not in baseline.snapshot.digests
                ]
                added = _take_state(module, tuple(tensors)) if tensors else None
            if added is not None:
                state = _override_digests(baseline, added)
                self._entries[id(module)] = (weakref.ref(module), state)

    def record_load(self, module: "nn.Module", before: ModuleState) -> None:
        """Take over what changed while `module` was loaded: a load restores it."""
        with torch_unobserved():
            after = _take_state(module, list_unsaved_tensors(module))
        baseline = self._find_baseline(module)
        changed = {
            *find_mutated(before.snapshot, after.snapshot),
            *find_added(before.snapshot, after.snapshot),
        }
        values = {
            path: value
            for path, value in after.snapshot.python_values.items()
            if before.snapshot.python_values.get(path) != value
        }
        if baseline is None:
            self._entries[id(module)] = (weakref.ref(module), after)
        elif changed or values:
            snapshot = replace(
                baseline.snapshot,
                python_values={**baseline.snapshot.python_values, **values},
                digests={
                    **baseline.snapshot.digests,
                    **{path: after.snapshot.digests[path] for path in changed},
                },
            )
            texts = {**baseline.texts, **{path: after.texts[path] for path in changed}}
            self._entries[id(module)] = (weakref.ref(module), ModuleState(snapshot, texts))

    def keeps_value(self, path: str, value: PythonValue) -> bool:
        """Whether a plain value is of a user's class, and no setting of a framework."""
        return not is_of_library(value.owner) and not _SETTING_NAMES & {*path.split(".")}

    def take_state(self, module: "nn.Module") -> ModuleState:
        with torch_unobserved():
            return _take_state(module, list_unsaved_tensors(module))

    def list_digests(self, module: "nn.Module") -> dict[str, str]:
        """Return path -> digest of the tensors that no state_dict holds, of the user's classes."""
        with torch_unobserved():
            return {
                found_tensor.path: content_digest(found_tensor.value)
                for found_tensor in list_unsaved_tensors(module)
                if is_of_user(found_tensor)
            }

    def describe_unsaved(self, module: "nn.Module") -> tuple[UnsavedValue, ...]:
        """Describe the tensors and arrays of `module` that no state_dict holds."""
        baseline = self._find_baseline(module)
        with torch_unobserved():
            tensors = list_unsaved_tensors(module)
            state = _take_state(module, tensors)
        changed = (
            {*find_mutated(baseline.snapshot, state.snapshot)} if baseline is not None else set()
        )
        return tuple(
            describe_unsaved_tensor(
                found_tensor,
                state.texts[found_tensor.path],
                baseline.texts.get(found_tensor.path, "") if baseline is not None else "",
                is_changed=found_tensor.path in changed,
                is_built_known=baseline is not None,
            )
            for found_tensor in tensors
            if is_of_user(found_tensor)
        )

    def find_changed(self, module: "nn.Module") -> tuple[list[tuple[UnsavedValue, Any]], bool]:
        """Return what changed since `module` was built, each with its value now.

        Returns:
            the changes; whether the state at the construction is known. If it is not, the state
            now is recorded in its place.
        """
        baseline = self._find_baseline(module)
        with torch_unobserved():
            tensors = list_unsaved_tensors(module)
            state = _take_state(module, tensors)
        if baseline is None:
            self._entries[id(module)] = (weakref.ref(module), state)
            return [], False
        changed_paths = {
            *find_mutated(baseline.snapshot, state.snapshot),
            *find_added(baseline.snapshot, state.snapshot),
        }
        changes: list[tuple[UnsavedValue, Any]] = [
            (
                describe_unsaved_tensor(
                    found_tensor,
                    state.texts[found_tensor.path],
                    baseline.texts.get(found_tensor.path, ""),
                    is_changed=True,
                ),
                found_tensor.value,
            )
            for found_tensor in tensors
            if found_tensor.path in changed_paths
            and found_tensor.path not in state.snapshot.extra_state_paths
            and is_of_user(found_tensor)
        ]
        changes += [
            (
                _describe_python_value(module, path, value, new_value),
                new_value.text,
            )
            for path, value in baseline.snapshot.python_values.items()
            if (new_value := state.snapshot.python_values.get(path)) is not None
            and _is_lost_value(path, value, new_value)
        ]
        return changes, True

    def _find_baseline(self, module: "nn.Module") -> ModuleState | None:
        """Return the recorded state of `module`, also of a part or a whole that was recorded."""
        entry = self._entries.get(id(module))
        if entry is not None and entry[0]() is module and entry[1] is not None:
            return entry[1]
        from torch import nn

        for whole in self.list_modules():
            state = self._entries[id(whole)][1]
            if state is None:
                continue
            for prefix, part in nn.Module.named_modules(whole):
                if part is module and prefix:
                    return _cut_prefix(state, f"{prefix}.")
        parts = self._list_parts(module)
        return _join_states(parts) if parts else None

    def _list_parts(self, module: "nn.Module") -> list[tuple[str, ModuleState]]:
        """Return (prefix, state) of the parts of `module` whose state was recorded."""
        from torch import nn

        entries = (
            (prefix, part, self._entries.get(id(part)))
            for prefix, part in nn.Module.named_modules(module)
        )
        return [
            (prefix, entry[1])
            for prefix, part, entry in entries
            if entry is not None and entry[0]() is part and entry[1] is not None
        ]


def _take_state(module: "nn.Module", tensors: tuple[FoundTensor, ...]) -> ModuleState:
    texts = {found_tensor.path: describe_elements(found_tensor.value) for found_tensor in tensors}
    return ModuleState(take_snapshot(module, tensors), texts)


def _cut_prefix(state: ModuleState, prefix: str) -> ModuleState:
    """Return the state of the sub-module whose paths begin with `prefix`."""
    snapshot = state.snapshot
    return ModuleState(
        ModuleSnapshot(
            {
                path.removeprefix(prefix): value
                for path, value in snapshot.python_values.items()
                if path.startswith(prefix)
            },
            {
                path.removeprefix(prefix): digest
                for path, digest in snapshot.digests.items()
                if path.startswith(prefix)
            },
            frozenset(
                path.removeprefix(prefix)
                for path in snapshot.extra_state_paths
                if path.startswith(prefix)
            ),
        ),
        {
            path.removeprefix(prefix): text
            for path, text in state.texts.items()
            if path.startswith(prefix)
        },
    )


def _override_state(state: ModuleState, parts: ModuleState) -> ModuleState:
    snapshot = state.snapshot
    values = {**snapshot.python_values, **parts.snapshot.python_values}
    digests = {**snapshot.digests, **parts.snapshot.digests}
    texts = {**state.texts, **parts.texts}
    return ModuleState(ModuleSnapshot(values, digests, snapshot.extra_state_paths), texts)


def _override_digests(state: ModuleState, other: ModuleState) -> ModuleState:
    """Return a state with the tensors of another one, and its own plain values."""
    digests = {**state.snapshot.digests, **other.snapshot.digests}
    snapshot = replace(state.snapshot, digests=digests)
    return ModuleState(snapshot, {**state.texts, **other.texts})


def _join_states(parts: list[tuple[str, ModuleState]]) -> ModuleState:
    """Return the state of a module that was put together of parts, each with its prefix."""
    values: dict[str, PythonValue] = {}
    digests: dict[str, str] = {}
    texts: dict[str, str] = {}
    extra_state_paths: set[str] = set()
    for prefix, state in parts:
        snapshot = state.snapshot
        values |= {join_key(prefix, path): v for path, v in snapshot.python_values.items()}
        digests |= {join_key(prefix, path): d for path, d in snapshot.digests.items()}
        texts |= {join_key(prefix, path): text for path, text in state.texts.items()}
        extra_state_paths |= {join_key(prefix, path) for path in snapshot.extra_state_paths}
    return ModuleState(ModuleSnapshot(values, digests, frozenset(extra_state_paths)), texts)


def _describe_python_value(
    module: "nn.Module", path: str, old_value: PythonValue, new_value: PythonValue
) -> UnsavedValue:
    owner, steps = _find_owner(module, path)
    is_in_object = len(steps) > 1
    location, target = ("", "") if is_in_object else locate_assignment(type(owner), steps[-1])
    return UnsavedValue(
        path=path,
        kind="value",
        owner=new_value.owner,
        text=new_value.text,
        old_text=old_value.text,
        assigned_at=location,
        assigned_to=target,
        is_flag=new_value.is_bool,
        is_changed=True,
        is_in_object=is_in_object,
    )


def _find_owner(module: "nn.Module", path: str) -> "tuple[nn.Module, list[str]]":
    """Return the deepest sub-module that `path` leads through, and the attributes from there on."""
    owner, steps = module, path.split(".")
    while len(steps) > 1 and (child := owner._modules.get(steps[0])) is not None:  # noqa: SLF001
        owner, steps = child, steps[1:]
    return owner, steps


def _is_lost_value(path: str, old_value: PythonValue, new_value: PythonValue) -> bool:
    """Whether a Python value of a user's class changed, and no extra state may have it."""
    steps = path.split(".")
    return (
        not old_value.is_none
        and new_value.text != old_value.text
        and not new_value.has_extra_state
        and not is_of_library(new_value.owner)
        and not steps[-1].startswith("_")
        and not _SETTING_NAMES & {*steps}
    )

"""Live modules of a process -> what each holds that no state_dict has, and what of it changed."""

import inspect
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
from ckptool.modules.tensor_info import content_digest, get_dtype_name
from ckptool.modules.tensor_parts import get_shape, get_wrapper_name, has_all_elements
from ckptool.modules.walk import FoundTensor, get_written_name
from ckptool.tracing.quiet import torch_unobserved
from ckptool.tracing.records import UnsavedValue

if TYPE_CHECKING:
    from torch import Tensor, nn

_MAX_ELEMENTS: Final = 4096
"""Maximum elements of a tensor whose distinct values are listed."""
_MAX_DISTINCT: Final = 3
_LIBRARIES: Final = frozenset(
    {
        *("torch", "torchmetrics", "accelerate", "deepspeed", "peft"),
        *("lightning", "lightning_fabric", "pytorch_lightning", "transformers", "diffusers"),
    }
)
"""Packages whose modules keep Python values that they set themselves, and no state of a model."""
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
        if _is_of_library(type(module).__module__):
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
        return not _is_of_library(value.owner) and not _SETTING_NAMES & {*path.split(".")}

    def take_state(self, module: "nn.Module") -> ModuleState:
        with torch_unobserved():
            return _take_state(module, list_unsaved_tensors(module))

    def list_digests(self, module: "nn.Module") -> dict[str, str]:
        """Return path -> digest of the tensors that no state_dict holds, of the user's classes."""
        with torch_unobserved():
            return {
                found_tensor.path: content_digest(found_tensor.value)
                for found_tensor in list_unsaved_tensors(module)
                if not _is_of_library(get_written_name(found_tensor.owner))
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
            _describe_tensor(
                found_tensor,
                state.texts[found_tensor.path],
                baseline.texts.get(found_tensor.path, "") if baseline is not None else "",
                is_changed=found_tensor.path in changed,
                is_built_known=baseline is not None,
            )
            for found_tensor in tensors
            if not _is_of_library(get_written_name(found_tensor.owner))
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
                _describe_tensor(
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
            and not _is_of_library(get_written_name(found_tensor.owner))
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


def describe_elements(value: Any) -> str:
    """Return dtype and shape of a tensor or array, and its distinct values if they are few."""
    text = f"{get_dtype_name(value)} {list(get_shape(value))}"
    distinct = _list_distinct(value)
    if not distinct:
        return text
    if len(distinct) == 1:
        return f"{text}, all {distinct[0]}"
    return f"{text} of {', '.join(distinct[:-1])} and {distinct[-1]}"


def _list_distinct(value: Any) -> list[str]:
    """Return the distinct elements as text, [] if they are many, unavailable or very many."""
    count = 1
    for size in get_shape(value):
        count *= size
    if not 0 < count <= _MAX_ELEMENTS:
        return []
    if hasattr(value, "detach") and (get_wrapper_name(value) or not has_all_elements(value)):
        return []  # of a DTensor, the elements may take communication
    try:
        flat = value.detach() if hasattr(value, "detach") else value
        elements = set(flat.reshape(-1).tolist())
    except (RuntimeError, TypeError, NotImplementedError):
        return []
    if len(elements) > _MAX_DISTINCT:
        return []
    return [
        repr(int(item) if isinstance(item, float) and item.is_integer() else item)
        for item in sorted(elements)
    ]


def _describe_tensor(
    found_tensor: FoundTensor,
    text: str,
    old_text: str,
    *,
    is_changed: bool,
    is_built_known: bool = True,
) -> UnsavedValue:
    value = found_tensor.value
    location, target = locate_assignment(type(found_tensor.owner), found_tensor.attribute)
    return UnsavedValue(
        path=found_tensor.path,
        kind=str(found_tensor.kind),
        owner=get_written_name(found_tensor.owner),
        text=text,
        old_text=old_text if old_text != text else "",
        assigned_at=location,
        assigned_to=target,
        device=str(getattr(value, "device", "cpu")),
        is_changed=is_changed,
        is_built_known=is_built_known,
    )


def _describe_python_value(
    module: "nn.Module", path: str, old_value: PythonValue, new_value: PythonValue
) -> UnsavedValue:
    owner = _find_owner(module, path)
    attribute = path.rpartition(".")[2]
    location, target = locate_assignment(type(owner), attribute)
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
    )


def _find_owner(module: "nn.Module", path: str) -> "nn.Module":
    """Return the deepest sub-module that `path` leads through."""
    owner = module
    for step in path.split("."):
        child = owner._modules.get(step)  # noqa: SLF001
        if child is None:
            break
        owner = child
    return owner


def _is_lost_value(path: str, old_value: PythonValue, new_value: PythonValue) -> bool:
    """Whether a Python value of a user's class changed, and no extra state may have it."""
    steps = path.split(".")
    return (
        not old_value.is_none
        and new_value.text != old_value.text
        and not new_value.has_extra_state
        and not _is_of_library(new_value.owner)
        and not steps[-1].startswith("_")
        and not _SETTING_NAMES & {*steps}
    )


def _is_of_library(owner: str) -> bool:
    return owner.partition(".")[0] in _LIBRARIES


def locate_assignment(cls: type, attribute: str) -> tuple[str, str]:
    """Return "file:line" and target of the first `self.attribute = ...` in the source of `cls`.

    ("", "") if there is none, or no source.
    """
    from ckptool.modules.assignment_locations import format_location

    for base in cls.__mro__:
        if _is_of_library(base.__module__) or base.__module__ == "builtins":
            continue
        try:
            lines, first = inspect.getsourcelines(base)
            file = inspect.getsourcefile(base) or ""
        except (OSError, TypeError):
            continue
        for offset, line in enumerate(lines):
            target, _, assigned_text = line.strip().partition("=")
            name = target.partition(":")[0].strip()
            if name == f"self.{attribute}" and assigned_text[:1] != "=":
                return format_location(file, first + offset), name
    return "", ""

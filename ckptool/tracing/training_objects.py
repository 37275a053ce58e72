"""Live objects with a state_dict that are no modules -> which of them a saved object contains."""

import gc
import sys
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any, Final

from msgspec import Struct

from ckptool.modules.walk import get_qualified_name, get_written_name
from ckptool.tracing.module_states import iter_saved_tensors
from ckptool.tracing.origins import identify_storage, iter_places
from ckptool.tracing.quiet import is_own_code
from ckptool.tracing.records import TrainingObject
from ckptool.tracing.tensor_equality import have_equal_elements

_SCAN_PAUSE: Final = 200
"""A search for objects is repeated only after this multiple of the time that the last one took."""
_MAX_DEPTH_VALUES: Final = 1000
_SCALER_KEYS: Final = frozenset({"growth_factor", "backoff_factor"})


class _Entry(Struct, frozen=True):
    reference: Any
    description: TrainingObject


class SavedContent:
    """The containers and tensors of a saved object, for asking what it contains."""

    def __init__(self, content: object) -> None:
        from torch import Tensor

        self.mappings: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = []
        self.tensors: list[tuple[tuple[str, ...], Tensor]] = []
        self.values: list[tuple[str, object]] = []
        self.modules: list[tuple[tuple[str, ...], Any]] = []
        self.objects: set[int] = set()
        self.tuples: list[tuple[Any, ...]] = []
        for place, value in iter_places(content):
            self.objects.add(id(value))
            if isinstance(value, Tensor):
                self.tensors.append((place, value))
            elif isinstance(value, dict):
                self.mappings.append((place, value))
            elif isinstance(value, tuple):
                self.tuples.append(value)
            elif isinstance(value, bool | int | float | str):
                self.values.append((place[-1] if place else "", value))
            elif hasattr(value, "_parameters") and hasattr(value, "_modules"):
                self.modules.append((place, value))
        pickled = (t for _, module in self.modules for _, t in iter_saved_tensors(module))
        tensors = (*(tensor for _, tensor in self.tensors), *pickled)
        self._storages = {identify_storage(tensor) for tensor in tensors} - {None}

    def has_storage(self, tensors: Iterable[Any]) -> bool:
        """Whether any of `tensors` shares memory with one in it."""
        return any(identify_storage(tensor) in self._storages for tensor in tensors)

    def contains_tensor(self, value: Any) -> bool:
        """Whether a tensor or array is in it: the same storage, or equal elements."""
        import torch

        if not isinstance(value, torch.Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                return False
        if identify_storage(value) in self._storages:
            return True
        return any(
            tensor.shape == value.shape
            and tensor.dtype == value.dtype
            and have_equal_elements(tensor, value)
            for _, tensor in self.tensors
        )

    def contains_value(self, name: str, text: str) -> bool:
        """Whether it has a plain value under a key like `name` whose repr is `text`."""
        return any(
            repr(value) == text and (name in key or key in name)
            for key, value in self.values
            if key
        )


class TrainingObjects:
    """Optimizers, schedulers and the like that were made in this process, held weakly."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._numbers = count()
        self._next_scan = 0.0
        self._own_classes = OwnClasses()

    def record_object(self, value: object, kind: str, where: str) -> None:
        """Remember an object whose construction begins."""
        entry = self._entries.get(id(value))
        if entry is not None and entry.reference() is value:
            return
        is_module = kind in {"module", "module copy"}
        owner = get_written_name(value) if is_module else get_qualified_name(type(value))  # type: ignore[arg-type]
        description = TrainingObject(next(self._numbers), kind, owner, where)
        self._entries[id(value)] = _Entry(weakref.ref(value), description)

    def list_objects(self, kind: str) -> list[Any]:
        """Return the live objects of one kind."""
        values = [
            entry.reference() for entry in self._entries.values() if entry.description.kind == kind
        ]
        return [value for value in values if value is not None]

    def split_by_content(
        self, content: SavedContent
    ) -> tuple[tuple[TrainingObject, ...], tuple[TrainingObject, ...]]:
        """Return the live objects whose state `content` has, and the others."""
        self._find_own_objects()
        saved: list[TrainingObject] = []
        unsaved: list[TrainingObject] = []
        for key, entry in list(self._entries.items()):
            value = entry.reference()
            if value is None:
                del self._entries[key]
            elif _has_state(value, entry.description.kind):
                is_saved = _is_saved(
                    value, entry.description.kind, content, self._list_alike(entry.description.kind)
                )
                (saved if is_saved else unsaved).append(entry.description)
        return tuple(saved), tuple(unsaved)

    def _list_alike(self, kind: str) -> list[Any]:
        """Return the live objects whose state may look like that of one of this kind."""
        if kind in {"module", "module copy"}:
            return [*self.list_objects("module"), *self.list_objects("module copy")]
        return self.list_objects(kind)

    def _find_own_objects(self) -> None:
        """Find objects of the user's own classes that have state_dict and load_state_dict."""
        if time.monotonic() < self._next_scan:
            return
        start = time.monotonic()
        for value in self._own_classes.list_instances():
            try:
                self.record_object(value, "object", "")
            except TypeError:  # no weak references to it
                continue
        end = time.monotonic()
        self._next_scan = end + _SCAN_PAUSE * (end - start)


class OwnClasses:
    """The user's own classes that have state_dict and load_state_dict, and are no modules."""

    def __init__(self) -> None:
        self._answers: dict[str, bool] = {}
        """Name of a Python module -> whether its file is the user's."""

    def list_instances(self) -> list[object]:
        """Return the live objects of these classes.

        Few scripts have such a class. An object refers to its class, so that the collector finds
        them without a look at every object in Python.
        """
        stateful = (cls for cls in _iter_subclasses(object) if _is_stateful(cls))
        classes = {cls for cls in stateful if self._is_own(cls)}
        if not classes:
            return []
        return [value for value in gc.get_referrers(*classes) if type(value) in classes]

    def _is_own(self, cls: type) -> bool:
        name = cls.__module__
        answer = self._answers.get(name)
        if answer is None:
            file = getattr(sys.modules.get(name), "__file__", None)
            answer = self._answers[name] = isinstance(file, str) and is_own_code(file)
        return answer


def _iter_subclasses(cls: type) -> Iterator[type]:
    """Yield all classes that are derived from `cls`, each once."""
    visited = {cls}
    pending = [cls]
    while pending:
        subclasses: list[type] = type.__subclasses__(pending.pop())
        for subclass in subclasses:
            if subclass not in visited:
                visited.add(subclass)
                pending.append(subclass)
                yield subclass


def _is_stateful(cls: type) -> bool:
    from torch import nn, optim

    for name in ("load_state_dict", "state_dict"):
        if not any(name in base.__dict__ for base in cls.__mro__):
            return False
    return not issubclass(cls, nn.Module | type | optim.Optimizer | optim.lr_scheduler.LRScheduler)


def _has_state(value: Any, kind: str) -> bool:
    if kind == "gradient scaler":
        return bool(value.is_enabled())
    return True


def _is_saved(value: Any, kind: str, content: SavedContent, alike: Iterable[Any]) -> bool:
    if id(value) in content.objects:
        return True
    if kind == "optimizer":
        return _is_optimizer_saved(value, content, alike)
    if kind == "gradient scaler":
        return any(mapping.keys() >= _SCALER_KEYS for _, mapping in content.mappings)
    if kind == "LR scheduler":
        return any(_is_scheduler_state(value, mapping) for _, mapping in content.mappings)
    if kind in {"module", "module copy"}:
        return _is_module_saved(value, content, alike)
    return _is_object_saved(value, content)


def _is_module_saved(module: Any, content: SavedContent, others: Iterable[Any]) -> bool:
    """Whether `content` has a tensor of the module, or all its names with equal shapes.

    Names alone tell only where none of `others` has the same: else a value has to be equal.
    """
    tensors = dict(iter_saved_tensors(module))
    if content.has_storage(tensors.values()):
        return True
    mappings = [mapping for _, mapping in content.mappings if _has_shapes(mapping, tensors)]
    has_twin = any(
        other is not module and _has_shapes(dict(iter_saved_tensors(other)), tensors)
        for other in others
    )
    return any(not has_twin or has_equal_tensor(mapping, tensors) for mapping in mappings)


def _has_shapes(mapping: Mapping[Any, Any], tensors: Mapping[str, Any]) -> bool:
    return bool(tensors) and all(
        getattr(mapping.get(name), "shape", None) == tensor.shape
        for name, tensor in tensors.items()
    )


def has_equal_tensor(mapping: Mapping[Any, Any], tensors: Mapping[str, Any]) -> bool:
    """Whether the first tensor of more than one element has the same elements in `mapping`."""
    import torch

    for name, tensor in tensors.items():
        value = mapping.get(name)
        if not isinstance(value, torch.Tensor) or tensor.numel() < 2:
            continue
        return value.shape == tensor.shape and have_equal_elements(value, tensor)
    return False


def _is_optimizer_saved(optimizer: Any, content: SavedContent, others: Iterable[Any]) -> bool:
    """Whether `content` has the settings of the optimizer, and its state if others have the same.

    Both optimizers of a GAN often have the same settings.
    """
    mappings = [m for _, m in content.mappings if _is_optimizer_state(optimizer, m)]
    has_twin = any(
        other is not optimizer and _is_optimizer_state(other, mapping)
        for other in others
        for mapping in mappings
    )
    return any(not has_twin or _may_be_own_state(optimizer, mapping) for mapping in mappings)


def _may_be_own_state(optimizer: Any, mapping: Mapping[Any, Any]) -> bool:
    """Whether the first state tensor of more than one element is equal in `mapping`.

    True where there is none to compare, or the states have names in place of numbers.
    """
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    states = mapping["state"]
    for index, parameter in enumerate(parameters):
        state, saved_state = optimizer.state.get(parameter) or {}, states.get(index)
        if saved_state is None:
            continue
        tensors = {k: v for k, v in state.items() if hasattr(v, "numel") and v.numel() > 1}
        if tensors:
            return has_equal_tensor(saved_state, tensors)
    return True


def _is_optimizer_state(optimizer: Any, mapping: Mapping[Any, Any]) -> bool:
    """Whether `mapping` is what the optimizer's state_dict() gives: groups equal, state the same.

    Frameworks wrap groups and states by name (FSDP): a mapping with both keys and the same number
    of groups counts, if the settings are equal.
    """
    groups = mapping.get("param_groups")
    if "state" not in mapping or not isinstance(groups, list):
        return False
    own_groups = optimizer.param_groups
    return len(groups) == len(own_groups) and all(
        isinstance(group, dict) and _have_equal_settings(group, own_group)
        for group, own_group in zip(groups, own_groups, strict=True)
    )


def _have_equal_settings(group: Mapping[Any, Any], own_group: Mapping[Any, Any]) -> bool:
    names = own_group.keys() - {"params", "param_names"}
    return len(group.get("params", ())) == len(own_group["params"]) and all(
        _is_equal(group.get(name), own_group[name]) for name in names
    )


def _is_scheduler_state(scheduler: Any, mapping: Mapping[Any, Any]) -> bool:
    own_values = {
        name: value
        for name, value in vars(scheduler).items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_")
    }
    return "last_epoch" in mapping and all(
        _is_equal(mapping.get(name), value) for name, value in own_values.items()
    )


def _is_object_saved(value: Any, content: SavedContent) -> bool:
    """Whether `content` has a tensor of the object, or a mapping with its plain values."""
    import torch

    fields = vars(value) if hasattr(value, "__dict__") else {}
    tensors = [
        child
        for _, child in zip(range(_MAX_DEPTH_VALUES), iter_places(dict(fields)), strict=False)
        if isinstance(child[1], torch.Tensor)
    ]
    if tensors:
        return any(content.contains_tensor(tensor) for _, tensor in tensors)
    plain = {
        name: child for name, child in fields.items() if isinstance(child, bool | int | float | str)
    }
    return any(_has_equal_value(mapping, plain) for _, mapping in content.mappings)


def _has_equal_value(mapping: Mapping[Any, Any], fields: Mapping[str, object]) -> bool:
    """Whether a mapping has one of the fields, with or without underscores, and its value."""
    return any(
        _is_equal(mapping.get(key), value)
        for name, value in fields.items()
        for key in (name, name.strip("_"))
    )


def _is_equal(first: object, second: object) -> bool:
    if type(first) is not type(second):
        return False
    if hasattr(first, "shape"):
        import torch

        return isinstance(first, torch.Tensor) and have_equal_elements(first, second)  # type: ignore[arg-type]
    try:
        return bool(first == second)
    except Exception:  # noqa: BLE001 (a user's __eq__)
        return False

"""nn.Module -> ModuleWalk: every tensor and array in it, registered or not."""

import dis
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from ckptool.model import Kind, join_key
from ckptool.modules.object_children import LEAF_TYPES, iter_children, list_slots
from ckptool.modules.world.member_lists import check_member_lists

if TYPE_CHECKING:
    from torch import nn

MAX_DEPTH: Final = 4
"""Maximum nesting of containers that are searched."""
METRIC_CLASS: Final = "torchmetrics.metric.Metric"
_HOOK_ATTRIBUTES: Final = ("_forward_pre_hooks", "_forward_hooks")


@dataclass(frozen=True, slots=True, eq=False)
class FoundTensor:
    """One tensor or array, and the registered module that owns it."""

    path: str
    """Python expression relative to the module; dict keys without a plain repr are `[#0]`."""
    kind: Kind
    value: Any
    """A torch.Tensor or a numpy.ndarray."""
    owner: "nn.Module"
    attribute: str
    """Attribute of `owner` that leads to the value."""
    is_registered: bool


@dataclass(frozen=True, slots=True, eq=False)
class ModuleWalk:
    """All tensors and sub-modules of a module."""

    tensors: tuple[FoundTensor, ...]
    """Registered parameters and buffers first."""
    modules: tuple[tuple[str, "nn.Module"], ...]
    """(prefix, module) of `named_modules()`, with all prefixes of a shared module."""
    none_buffers: Mapping[str, str]
    hidden_modules: Mapping[str, str]
    """Path of a module that `named_modules()` does not list -> its class."""
    hidden_instances: "tuple[nn.Module, ...]"
    """Those modules, in the order of `hidden_modules`; their own sub-modules are not repeated."""
    unsearched_paths: tuple[str, ...]
    """Paths of containers nested deeper than MAX_DEPTH."""


def walk_module(module: "nn.Module") -> ModuleWalk:
    """Search `module`, its sub-modules, their attributes, and containers down to MAX_DEPTH.

    Raises:
        EndlessListError: a method that lists its members does not end.
    """
    check_member_lists(module)
    members = tuple(module.named_modules(remove_duplicate=False))
    search = _ModuleSearch({id(member) for _, member in members})
    tensors = [f for prefix, member in members for f in search.iter_registered(prefix, member)]
    tensors += [f for prefix, member in members for f in search.iter_unregistered(prefix, member)]
    return ModuleWalk(
        tensors=tuple(tensors),
        modules=members,
        none_buffers=search.none_buffers,
        hidden_modules=search.hidden_modules,
        hidden_instances=tuple(search.hidden_instances),
        unsearched_paths=tuple(search.unsearched_paths),
    )


def get_qualified_name(cls: type) -> str:
    """Return "module.qualname" of `cls`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def get_written_name(module: "nn.Module") -> str:
    """Return "module.qualname" of the class that was written, not made by a function of torch.

    fully_shard() and the parametrizations of torch give a module a class of their own, derived from
    its class.
    """
    from torch import nn

    classes = (cls for cls in type(module).__mro__ if issubclass(cls, nn.Module))
    written = (cls for cls in classes if not _is_made_by_torch(cls))
    return get_qualified_name(next(written, type(module)))


def _is_made_by_torch(cls: type) -> bool:
    """Whether it is in no module of torch by its name, though it says that it is."""
    if not cls.__module__.startswith("torch."):
        return False
    return getattr(sys.modules.get(cls.__module__), cls.__name__, None) is not cls


def list_attributes(module: "nn.Module") -> set[str]:
    """Return the names in the `__dict__` of `module` and its registered names."""
    kinds = (module._parameters, module._buffers, module._modules)  # noqa: SLF001
    return {*vars(module), *(name for registry in kinds for name, _ in registry.items())}


FRAMEWORK_BASES: Final = (
    "accelerate",
    "diffusers.configuration_utils",
    "diffusers.loaders",
    "diffusers.models.modeling_utils",
    "diffusers.utils",
    "huggingface_hub",
    "transformers.generation",
    "transformers.integrations",
    "transformers.modeling_utils",
    "transformers.utils",
)
"""Modules and packages of the base classes of frameworks."""


def list_classes_below_module(cls: type) -> tuple[type, ...]:
    """Return `cls` and its bases below nn.Module, in method resolution order.

    Base classes of frameworks are left out like nn.Module itself: they load, save and place.
    """
    from torch import nn

    return tuple(c for c in cls.__mro__ if c not in nn.Module.__mro__ and not _is_framework_base(c))


def _is_framework_base(cls: type) -> bool:
    """Whether `cls` is one of the classes that every model of a framework is derived from."""
    return any(
        cls.__module__ == name or cls.__module__.startswith(f"{name}.") for name in FRAMEWORK_BASES
    )


def is_torch_class(cls: type) -> bool:
    """Whether `cls` is defined in torch."""
    return cls.__module__.partition(".")[0] == "torch"


def is_set_from_outside(module: "nn.Module", attribute: str) -> bool:
    """Whether `module` is of a class of torch.nn whose code never assigns this attribute.

    Then the user's code has set it on the instance. What an object of torch keeps there, such as
    the views into the flat parameter of FSDP, has a name that the class itself assigns.
    """
    cls = next(cls for cls in type(module).__mro__ if not _is_made_by_torch(cls))
    return cls.__module__.startswith("torch.nn.modules.") and not any(
        attribute in _list_assigned_names(base) for base in list_classes_below_module(cls)
    )


@cache
def _list_assigned_names(cls: type) -> frozenset[str]:
    """Return the attributes that methods of a class assign, of whatever object."""
    functions = [inspect.unwrap(value) for value in vars(cls).values() if callable(value)]
    return frozenset(
        str(instruction.argval)
        for function in functions
        if hasattr(function, "__code__")
        for instruction in dis.get_instructions(function)
        if instruction.opname == "STORE_ATTR"
    )


@dataclass(frozen=True, slots=True)
class _SearchRoot:
    """An attribute of a registered module where a search starts."""

    owner: "nn.Module"
    attribute: str
    kind: Kind | None = None
    """Kind of all tensors below; None if it depends on the value."""
    visited_ids: set[int] = field(default_factory=set)
    """`id()` of values already visited from this attribute."""


@dataclass(slots=True)
class _ModuleSearch:
    """State of one search of a module."""

    registered_ids: set[int]
    none_buffers: dict[str, str] = field(default_factory=dict)
    hidden_modules: dict[str, str] = field(default_factory=dict)
    hidden_instances: "list[nn.Module]" = field(default_factory=list)
    unsearched_paths: list[str] = field(default_factory=list)
    hidden_ids: set[int] = field(default_factory=set)

    def iter_registered(self, prefix: str, module: "nn.Module") -> Iterator[FoundTensor]:
        for name, value, kind in _iter_registered_values(module):
            if value is not None:
                yield FoundTensor(
                    join_key(prefix, name), kind, value, module, name, is_registered=True
                )
            elif kind is not Kind.PARAMETER:
                self.none_buffers[join_key(prefix, name)] = get_qualified_name(type(module))

    def iter_unregistered(self, prefix: str, module: "nn.Module") -> Iterator[FoundTensor]:
        """Yield the tensors in unregistered, hook and class attributes of `module`."""
        metric_kinds = _find_metric_states(module)
        for name, value in _iter_unregistered_values(module):
            root = _SearchRoot(module, name, metric_kinds.get(name))
            yield from self._search_value(root, join_key(prefix, name), value, 0)
        for name in _HOOK_ATTRIBUTES:
            # By position: the keys of hooks are numbers from a counter shared by all modules.
            for index, hook in enumerate(list(getattr(module, name).values())):
                path = f"{join_key(prefix, name)}[#{index}]"
                yield from self._search_value(_SearchRoot(module, name), path, hook, 0)
        for name, value in _iter_class_attributes(module):
            root = _SearchRoot(module, name, Kind.CLASS_ATTRIBUTE)
            yield from self._search_value(root, join_key(prefix, name), value, 0)

    def _search_value(
        self, root: _SearchRoot, path: str, value: object, depth: int
    ) -> Iterator[FoundTensor]:
        from torch import nn

        if isinstance(value, LEAF_TYPES) or id(value) in root.visited_ids:
            return
        if isinstance(value, nn.Module):
            yield from self._search_hidden_module(root, path, value)
        elif _is_tensor_or_array(value):
            root.visited_ids.add(id(value))
            kind = root.kind or _classify_kind(value, depth)
            yield FoundTensor(path, kind, value, root.owner, root.attribute, is_registered=False)
        elif depth == MAX_DEPTH:
            self._record_unsearched(path, value)
        else:
            root.visited_ids.add(id(value))
            for step, child in iter_children(value):
                yield from self._search_value(root, f"{path}{step}", child, depth + 1)

    def _search_hidden_module(
        self, root: _SearchRoot, path: str, module: "nn.Module"
    ) -> Iterator[FoundTensor]:
        """Yield the tensors of a module that is not in `named_modules()`: none of them is saved."""
        if id(module) in self.registered_ids or id(module) in self.hidden_ids:
            return
        self.hidden_modules[path] = get_qualified_name(type(module))
        self.hidden_instances.append(module)
        for prefix, member in module.named_modules():
            if id(member) in self.registered_ids or id(member) in self.hidden_ids:
                continue
            self.hidden_ids.add(id(member))
            member_path = join_key(path, prefix) if prefix else path
            for name, value, _ in _iter_registered_values(member):
                if value is not None and id(value) not in root.visited_ids:
                    root.visited_ids.add(id(value))
                    key = join_key(member_path, name)
                    yield FoundTensor(
                        key, Kind.MODULE, value, root.owner, root.attribute, is_registered=False
                    )
            member_root = _SearchRoot(root.owner, root.attribute, Kind.MODULE, root.visited_ids)
            for name, value in _iter_unregistered_values(member):
                yield from self._search_value(member_root, join_key(member_path, name), value, 0)

    def _record_unsearched(self, path: str, value: object) -> None:
        if any(not isinstance(child, LEAF_TYPES) for _, child in iter_children(value)):
            self.unsearched_paths.append(path)


def _iter_registered_values(module: "nn.Module") -> Iterator[tuple[str, Any, Kind]]:
    # Not from vars(): a traced module stores them elsewhere.
    for name, parameter in module._parameters.items():  # noqa: SLF001
        yield name, parameter, Kind.PARAMETER
    non_persistent = module._non_persistent_buffers_set  # noqa: SLF001
    for name, buffer in module._buffers.items():  # noqa: SLF001
        yield name, buffer, Kind.NON_PERSISTENT_BUFFER if name in non_persistent else Kind.BUFFER


def _iter_unregistered_values(module: "nn.Module") -> Iterator[tuple[str, object]]:
    """Yield the attributes of `module` except those of nn.Module and of torch's hooks."""
    from torch import nn

    computed_names = _find_hook_computed_names(module)
    internal_names = vars(nn.Module()).keys() | {"_actual_script_module"}
    if _find_metric_states(module):
        # The values that reset() restores are not separate state.
        internal_names |= {"_defaults"}
    for name, value in list(vars(module).items()):
        # torch.jit stores bound methods such as __dir__ among the attributes.
        if name not in internal_names and name not in computed_names and not name.startswith("__"):
            yield name, value
    for name in list_slots(type(module)):
        if hasattr(module, name):
            yield name, getattr(module, name)
    yield from _iter_scripted_attributes(module)


def _iter_scripted_attributes(module: "nn.Module") -> Iterator[tuple[str, object]]:
    """Yield the plain attributes of a scripted module, which are stored outside Python."""
    concrete_type = vars(module).get("_concrete_type")
    for name in concrete_type.get_attributes() if concrete_type is not None else ():
        if not name.startswith("_"):
            yield name, getattr(module, name)


def _find_metric_states(module: "nn.Module") -> dict[str, Kind]:
    """Return name -> Kind of the states of a torchmetrics metric, {} for other modules.

    A state of add_state() behaves like a buffer: it moves with the module, and `persistent`
    decides whether it is saved.
    """
    if METRIC_CLASS not in map(get_qualified_name, type(module).__mro__):
        return {}
    persistent = vars(module).get("_persistent", {})
    return {
        name: Kind.BUFFER if persistent.get(name) else Kind.NON_PERSISTENT_BUFFER
        for name in vars(module).get("_defaults", {})
    }


def _find_hook_computed_names(module: "nn.Module") -> set[str]:
    """Return the attributes that a hook of weight_norm, spectral_norm or prune computes."""
    registered_names = [name for name, _, _ in _iter_registered_values(module)]
    hooks = module._forward_pre_hooks.values()  # noqa: SLF001
    hook_targets = {
        getattr(hook, "name", None) or getattr(hook, "_tensor_name", None) for hook in hooks
    }
    return {
        name
        for name in hook_targets
        if isinstance(name, str) and any(r.startswith(f"{name}_") for r in registered_names)
    }


def _iter_class_attributes(module: "nn.Module") -> Iterator[tuple[str, object]]:
    shadowing_names = list_attributes(module)
    for cls in list_classes_below_module(type(module)):
        if not is_torch_class(cls):
            for name, value in list(vars(cls).items()):
                if name not in shadowing_names and not name.startswith("__"):
                    shadowing_names.add(name)
                    yield name, value


def _is_tensor_or_array(value: object) -> bool:
    from torch import Tensor

    numpy = sys.modules.get("numpy")
    return isinstance(value, Tensor) or (numpy is not None and isinstance(value, numpy.ndarray))


def _classify_kind(value: object, depth: int) -> Kind:
    from torch import Tensor, nn

    if isinstance(value, nn.Parameter):
        return Kind.PARAMETER
    if not isinstance(value, Tensor):
        return Kind.ARRAY
    return Kind.CONTAINER if depth else Kind.ATTRIBUTE

"""nn.Module -> Found: every tensor and array that it holds, registered or not."""

import dataclasses
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from ckptool.model import Kind

if TYPE_CHECKING:
    from torch import nn

DEPTH: Final = 4
"""Containers inside containers that are searched."""
METRIC: Final = "torchmetrics.metric.Metric"
_ATOMS = (str, bytes, int, float, complex, bool, type(None), type, range, slice)
_OPAQUE = sys.stdlib_module_names | {"torch", "numpy", "builtins"}
"""Packages whose own objects are not searched: they hold no state of a model."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """One tensor or array, and the registered module that holds it."""

    path: str
    """A Python expression from the module on, but for dict keys without a plain repr: `[#0]`."""
    kind: Kind
    value: Any
    """A torch.Tensor or a numpy.ndarray."""
    owner: "nn.Module"
    attribute: str
    """The name on `owner` from which the path goes on."""
    registered: bool


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """Everything that a module holds."""

    found: tuple[Found, ...]
    """Registered state first."""
    members: tuple[tuple[str, "nn.Module"], ...]
    """The module tree, each place of a shared module."""
    none_buffers: Mapping[str, str]
    hidden: Mapping[str, str]
    """Path of a module outside the tree -> its class."""
    unsearched: tuple[str, ...]
    """Paths of containers that lie too deep."""


def walk(module: "nn.Module") -> Walk:
    """Search `module` and its sub-modules, their attributes, and containers down to DEPTH."""
    members = tuple(module.named_modules(remove_duplicate=False))
    search = _Search({id(member) for _, member in members})
    found = [f for prefix, member in members for f in search.registered(prefix, member)]
    found += [f for prefix, member in members for f in search.loose(prefix, member)]
    return Walk(
        found=tuple(found),
        members=members,
        none_buffers=search.none_buffers,
        hidden=search.hidden,
        unsearched=tuple(search.unsearched),
    )


def qualified(cls: type) -> str:
    """Return the qualified name of `cls`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def join(prefix: str, name: str) -> str:
    """Return the key of `name` below `prefix`."""
    return f"{prefix}.{name}" if prefix else name


def attributes(module: "nn.Module") -> set[str]:
    """Return the names in the `__dict__` of `module`, and those that it has registered."""
    kinds = (module._parameters, module._buffers, module._modules)  # noqa: SLF001
    return {*vars(module), *(name for registered in kinds for name, _ in registered.items())}


def below_module(cls: type) -> tuple[type, ...]:
    """Return `cls` and its bases below nn.Module, in the order of attribute lookup."""
    from torch import nn

    return tuple(c for c in cls.__mro__ if c not in nn.Module.__mro__)


def is_torchs(cls: type) -> bool:
    """Whether `cls` is torch's own."""
    return cls.__module__.partition(".")[0] == "torch"


@dataclass(frozen=True, slots=True)
class _Spot:
    """An attribute of a registered module, from which a search goes down."""

    owner: "nn.Module"
    attribute: str
    kind: Kind | None = None
    """The kind of whatever is found, where it does not depend on what that is."""
    seen: set[int] = field(default_factory=set)
    """What this attribute led to already."""


@dataclass(slots=True)
class _Search:
    """The state of one walk."""

    registered_modules: set[int]
    none_buffers: dict[str, str] = field(default_factory=dict)
    hidden: dict[str, str] = field(default_factory=dict)
    unsearched: list[str] = field(default_factory=list)
    entered: set[int] = field(default_factory=set)

    def registered(self, prefix: str, module: "nn.Module") -> Iterator[Found]:
        for name, value, kind in _registered(module):
            if value is not None:
                yield Found(join(prefix, name), kind, value, module, name, registered=True)
            elif kind is not Kind.PARAMETER:
                self.none_buffers[join(prefix, name)] = qualified(type(module))

    def loose(self, prefix: str, module: "nn.Module") -> Iterator[Found]:
        """Yield what is found from the attributes of `module` and of its own classes."""
        metric = _metric_states(module)
        for name, value in _loose(module):
            spot = _Spot(module, name, metric.get(name))
            yield from self._at(spot, join(prefix, name), value, 0)
        for name, value in _class_attributes(module):
            spot = _Spot(module, name, Kind.CLASS_ATTRIBUTE)
            yield from self._at(spot, join(prefix, name), value, 0)

    def _at(self, spot: _Spot, path: str, value: object, depth: int) -> Iterator[Found]:
        from torch import nn

        if isinstance(value, _ATOMS) or id(value) in spot.seen:
            return
        if isinstance(value, nn.Module):
            yield from self._inside(spot, path, value)
        elif _is_state(value):
            spot.seen.add(id(value))
            kind = spot.kind or _kind(value, depth)
            yield Found(path, kind, value, spot.owner, spot.attribute, registered=False)
        elif depth == DEPTH:
            self._give_up(path, value)
        else:
            spot.seen.add(id(value))
            for step, child in _children(value):
                yield from self._at(spot, f"{path}{step}", child, depth + 1)

    def _inside(self, spot: _Spot, path: str, module: "nn.Module") -> Iterator[Found]:
        """Yield all that a module outside the tree holds: none of it is saved."""
        if id(module) in self.registered_modules or id(module) in self.entered:
            return
        self.hidden[path] = qualified(type(module))
        for prefix, member in module.named_modules():
            if id(member) in self.registered_modules or id(member) in self.entered:
                continue
            self.entered.add(id(member))
            place = join(path, prefix) if prefix else path
            for name, value, _ in _registered(member):
                if value is not None and id(value) not in spot.seen:
                    spot.seen.add(id(value))
                    key = join(place, name)
                    yield Found(
                        key, Kind.MODULE, value, spot.owner, spot.attribute, registered=False
                    )
            inner = _Spot(spot.owner, spot.attribute, Kind.MODULE, spot.seen)
            for name, value in _loose(member):
                yield from self._at(inner, join(place, name), value, 0)

    def _give_up(self, path: str, value: object) -> None:
        if any(not isinstance(child, _ATOMS) for _, child in _children(value)):
            self.unsearched.append(path)


def _registered(module: "nn.Module") -> Iterator[tuple[str, Any, Kind]]:
    # Not from vars(): a traced module has them elsewhere.
    for name, parameter in module._parameters.items():  # noqa: SLF001
        yield name, parameter, Kind.PARAMETER
    left_out = module._non_persistent_buffers_set  # noqa: SLF001
    for name, buffer in module._buffers.items():  # noqa: SLF001
        yield name, buffer, Kind.NON_PERSISTENT_BUFFER if name in left_out else Kind.BUFFER


def _loose(module: "nn.Module") -> Iterator[tuple[str, object]]:
    """Yield the attributes of `module` that neither nn.Module nor a hook of torch's keeps."""
    from torch import nn

    derived = _derived(module)
    internal = vars(nn.Module()).keys() | {"_actual_script_module"}
    if _metric_states(module):
        # What reset() puts back is no state of its own.
        internal |= {"_defaults"}
    for name, value in list(vars(module).items()):
        if name not in internal and name not in derived:
            yield name, value


def _metric_states(module: "nn.Module") -> dict[str, Kind]:
    """Return what the states of a metric of torchmetrics are, by name; none for other modules.

    What add_state() makes is a buffer in all but name: it moves along, and `persistent` decides
    whether it is saved.
    """
    if METRIC not in map(qualified, type(module).__mro__):
        return {}
    persistent = vars(module).get("_persistent", {})
    return {
        name: Kind.BUFFER if persistent.get(name) else Kind.NON_PERSISTENT_BUFFER
        for name in vars(module).get("_defaults", {})
    }


def _derived(module: "nn.Module") -> set[str]:
    """Return the attributes that weight_norm, spectral_norm or prune compute in a hook."""
    registered = [name for name, _, _ in _registered(module)]
    hooks = module._forward_pre_hooks.values()  # noqa: SLF001
    named = {getattr(hook, "name", None) or getattr(hook, "_tensor_name", None) for hook in hooks}
    return {
        name
        for name in named
        if isinstance(name, str) and any(r.startswith(f"{name}_") for r in registered)
    }


def _class_attributes(module: "nn.Module") -> Iterator[tuple[str, object]]:
    hiding = attributes(module)
    for cls in below_module(type(module)):
        if not is_torchs(cls):
            for name, value in list(vars(cls).items()):
                if name not in hiding and not name.startswith("__"):
                    hiding.add(name)
                    yield name, value


def _is_state(value: object) -> bool:
    from torch import Tensor

    numpy = sys.modules.get("numpy")
    return isinstance(value, Tensor) or (numpy is not None and isinstance(value, numpy.ndarray))


def _kind(value: object, depth: int) -> Kind:
    from torch import Tensor, nn

    if isinstance(value, nn.Parameter):
        return Kind.PARAMETER
    if not isinstance(value, Tensor):
        return Kind.ARRAY
    return Kind.CONTAINER if depth else Kind.ATTRIBUTE


def _children(value: object) -> Iterator[tuple[str, object]]:
    """Yield what `value` contains, each with its step of the path."""
    match value:
        case dict() | MappingProxyType():
            for index, (key, child) in enumerate(list(value.items())):
                yield _key(key, index), child
        case list() | tuple() | deque():
            # list(value) would ask for a length, which e3nn's tuples refuse to tell.
            yield from _indexed(list(iter(value)))
        case set() | frozenset():
            yield from _indexed(sorted(value, key=_rank))
        case partial():
            yield ".func", value.func
            yield ".args", value.args
            yield ".keywords", value.keywords
        case _:
            yield from _fields(value)


def _indexed(values: Iterable[object]) -> Iterator[tuple[str, object]]:
    for index, child in enumerate(values):
        yield f"[{index}]", child


def _key(key: object, index: int) -> str:
    parts = key if isinstance(key, tuple) else (key,)
    plain = all(isinstance(part, str | int | float | bytes | None) for part in parts)
    return f"[{key!r}]" if plain else f"[#{index}]"


def _rank(value: object) -> tuple[str, str]:
    """Return something to sort a set by that does not change between two runs."""
    if isinstance(value, _ATOMS):
        return type(value).__name__, repr(value)
    shape, dtype = getattr(value, "shape", ""), getattr(value, "dtype", "")
    return type(value).__name__, f"{dtype}{shape}"


def _fields(value: object) -> Iterator[tuple[str, object]]:
    """Yield the attributes of a plain object, such as the running statistics of a user's class."""
    if dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            if hasattr(value, item.name):
                yield f".{item.name}", getattr(value, item.name)
    elif isinstance(value, SimpleNamespace) or is_plain(value):
        for name, child in list(vars(value).items()):
            yield f".{name}", child


def is_plain(value: object) -> bool:
    """Whether `value` is an object of a user's own class, with attributes of its own."""
    package = type(value).__module__.partition(".")[0]
    return package not in _OPAQUE and isinstance(getattr(value, "__dict__", None), dict)

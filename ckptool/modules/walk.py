"""nn.Module -> ModuleWalk: every tensor and array in it, registered or not."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ckptool.model import Kind
from ckptool.modules.containers import ATOMS, children

if TYPE_CHECKING:
    from torch import nn

DEPTH: Final = 4
"""Maximum nesting of containers that are searched."""
METRIC: Final = "torchmetrics.metric.Metric"
_HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks")


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """One tensor or array, and the registered module that owns it."""

    path: str
    """Python expression relative to the module; dict keys without a plain repr are `[#0]`."""
    kind: Kind
    value: Any
    """A torch.Tensor or a numpy.ndarray."""
    owner: "nn.Module"
    attribute: str
    """Attribute of `owner` that leads to the value."""
    registered: bool


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """All tensors and sub-modules of a module."""

    found: tuple[Found, ...]
    """Registered parameters and buffers first."""
    members: tuple[tuple[str, "nn.Module"], ...]
    """(prefix, module) of `named_modules()`, with all prefixes of a shared module."""
    none_buffers: Mapping[str, str]
    hidden: Mapping[str, str]
    """Path of a module that `named_modules()` does not list -> its class."""
    unsearched: tuple[str, ...]
    """Paths of containers nested deeper than MAX_DEPTH."""


def walk(module: "nn.Module") -> Walk:
    """Search `module`, its sub-modules, their attributes, and containers down to MAX_DEPTH."""
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
    """Return "module.qualname" of `cls`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def join(prefix: str, name: str) -> str:
    """Return "prefix.name", or `name` if `prefix` is ""."""
    return f"{prefix}.{name}" if prefix else name


def attributes(module: "nn.Module") -> set[str]:
    """Return the names in the `__dict__` of `module` and its registered names."""
    kinds = (module._parameters, module._buffers, module._modules)  # noqa: SLF001
    return {*vars(module), *(name for registered in kinds for name, _ in registered.items())}


def below_module(cls: type) -> tuple[type, ...]:
    """Return `cls` and its bases below nn.Module, in method resolution order."""
    from torch import nn

    return tuple(c for c in cls.__mro__ if c not in nn.Module.__mro__)


def is_torchs(cls: type) -> bool:
    """Whether `cls` is defined in torch."""
    return cls.__module__.partition(".")[0] == "torch"


@dataclass(frozen=True, slots=True)
class _Spot:
    """An attribute of a registered module where a search starts."""

    owner: "nn.Module"
    attribute: str
    kind: Kind | None = None
    """Kind of all tensors below; None if it depends on the value."""
    seen: set[int] = field(default_factory=set)
    """`id()` of values already visited from this attribute."""


@dataclass(slots=True)
class _Search:
    """State of one search of a module."""

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
        """Yield the tensors in unregistered, hook and class attributes of `module`."""
        metric = _metric_states(module)
        for name, value in _loose(module):
            spot = _Spot(module, name, metric.get(name))
            yield from self._at(spot, join(prefix, name), value, 0)
        for name in _HOOKS:
            # By position: the keys of hooks are numbers from a counter shared by all modules.
            for index, hook in enumerate(list(getattr(module, name).values())):
                path = f"{join(prefix, name)}[#{index}]"
                yield from self._at(_Spot(module, name), path, hook, 0)
        for name, value in _class_attributes(module):
            spot = _Spot(module, name, Kind.CLASS_ATTRIBUTE)
            yield from self._at(spot, join(prefix, name), value, 0)

    def _at(self, spot: _Spot, path: str, value: object, depth: int) -> Iterator[Found]:
        from torch import nn

        if isinstance(value, ATOMS) or id(value) in spot.seen:
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
            for step, child in children(value):
                yield from self._at(spot, f"{path}{step}", child, depth + 1)

    def _inside(self, spot: _Spot, path: str, module: "nn.Module") -> Iterator[Found]:
        """Yield the tensors of a module that is not in `named_modules()`: none of them is saved."""
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
        if any(not isinstance(child, ATOMS) for _, child in children(value)):
            self.unsearched.append(path)


def _registered(module: "nn.Module") -> Iterator[tuple[str, Any, Kind]]:
    # Not from vars(): a traced module stores them elsewhere.
    for name, parameter in module._parameters.items():  # noqa: SLF001
        yield name, parameter, Kind.PARAMETER
    left_out = module._non_persistent_buffers_set  # noqa: SLF001
    for name, buffer in module._buffers.items():  # noqa: SLF001
        yield name, buffer, Kind.NON_PERSISTENT_BUFFER if name in left_out else Kind.BUFFER


def _loose(module: "nn.Module") -> Iterator[tuple[str, object]]:
    """Yield the attributes of `module` except those of nn.Module and of torch's hooks."""
    from torch import nn

    derived = _derived(module)
    internal = vars(nn.Module()).keys() | {"_actual_script_module"}
    if _metric_states(module):
        # The values that reset() restores are not separate state.
        internal |= {"_defaults"}
    for name, value in list(vars(module).items()):
        # torch.jit stores bound methods such as __dir__ among the attributes.
        if name not in internal and name not in derived and not name.startswith("__"):
            yield name, value
    yield from _scripted(module)


def _scripted(module: "nn.Module") -> Iterator[tuple[str, object]]:
    """Yield the plain attributes of a scripted module, which are stored outside Python."""
    concrete = vars(module).get("_concrete_type")
    for name in concrete.get_attributes() if concrete is not None else ():
        if not name.startswith("_"):
            yield name, getattr(module, name)


def _metric_states(module: "nn.Module") -> dict[str, Kind]:
    """Return name -> Kind of the states of a torchmetrics metric, {} for other modules.

    A state of add_state() behaves like a buffer: it moves with the module, and `persistent`
    decides whether it is saved.
    """
    if METRIC not in map(qualified, type(module).__mro__):
        return {}
    persistent = vars(module).get("_persistent", {})
    return {
        name: Kind.BUFFER if persistent.get(name) else Kind.NON_PERSISTENT_BUFFER
        for name in vars(module).get("_defaults", {})
    }


def _derived(module: "nn.Module") -> set[str]:
    """Return the attributes that a hook of weight_norm, spectral_norm or prune computes."""
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

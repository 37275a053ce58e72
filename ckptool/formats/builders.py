"""Recorded call to an allowed builtin -> the plain container or node that the call would return."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

from ckptool.formats.nodes import Elements, Global, Opaque, Ordered, PickleError, checked_key

_ALLOCATED: Final = 1 << 20
"""Maximum n of a `bytearray(n)`, in bytes."""


class Purse(Protocol):
    """The part of `PickleMachine` that a `CallBuilder` uses."""

    def spend(self, nbytes: int) -> None: ...

    def call(self, func: object, args: object) -> object: ...


Builder = Callable[[Any, tuple[Any, ...]], object]


def _mapping(machine: Purse, args: tuple[Any, ...]) -> object:
    made = Ordered()
    if not args:
        return made
    source = args[-1]
    if type(source) is Global:  # a defaultdict's factory
        return made
    machine.spend(64 * len(source) if isinstance(source, dict | list | tuple) else 0)
    if isinstance(source, dict):
        made.update(source)
    elif isinstance(source, list | tuple):
        for pair in source:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise PickleError("a mapping is made of something else than pairs")
            made[checked_key(pair[0])] = pair[1]
    else:
        raise PickleError(f"a mapping is made of a {type(source).__name__}")
    return made


def _elements(machine: Purse, args: tuple[Any, ...]) -> object:
    source = args[0] if args else ()
    if isinstance(source, Elements):
        source = source.items
    if not isinstance(source, list | tuple):
        raise PickleError(f"a set is made of a {type(source).__name__}")
    machine.spend(64 * len(source))
    return Elements([checked_key(item) for item in source])


def _size(machine: Purse, args: tuple[Any, ...]) -> object:
    source = args[0] if args else ()
    if not isinstance(source, list | tuple):
        raise PickleError(f"a torch.Size is made of a {type(source).__name__}")
    machine.spend(8 * len(source))
    return tuple(source)


def _encoded(machine: Purse, args: tuple[Any, ...]) -> object:
    """`_codecs.encode(text, "latin1")`: bytes as pickle protocols 0 to 2 write them."""
    if not args or type(args[0]) is not str or args[1:] not in (("latin1",), ("latin-1",)):
        raise PickleError("_codecs.encode of something else than Latin-1 text")
    machine.spend(len(args[0]))
    return args[0].encode("latin-1")


def _bytes(machine: Purse, args: tuple[Any, ...]) -> object:
    source = args[0] if args else b""
    if type(source) is str and args[1:] in (("latin1",), ("latin-1",)):
        machine.spend(len(source))
        return source.encode("latin-1")
    if type(source) is int and 0 <= source <= _ALLOCATED:
        machine.spend(source)
        return bytes(source)
    if type(source) is int:
        raise PickleError(f"builtins.bytearray would allocate {source} bytes")
    if type(source) is not bytes:
        raise PickleError(f"a bytearray is made of a {type(source).__name__}")
    return source


def _reconstructed(machine: Purse, args: tuple[Any, ...]) -> object:
    """`copyreg._reconstructor(class, base, base_value)`: objects of protocols 0 and 1."""
    if len(args) != 3 or type(args[0]) is not Global:
        raise PickleError("copyreg._reconstructor without a class")
    made = machine.call(args[0], ())
    if type(made) is Opaque and isinstance(args[2], dict):
        made.pairs = args[2]
    elif type(made) is Opaque and isinstance(args[2], list):
        made.items = args[2]
    elif type(made) is Opaque and args[2] is not None:
        made.args = (args[2],)
    return made


def _new(machine: Purse, args: tuple[Any, ...]) -> object:
    """`copyreg.__newobj__(class, *args)`."""
    if not args:
        raise PickleError("copyreg.__newobj__ without a class")
    return machine.call(args[0], args[1:])


def _new_ex(machine: Purse, args: tuple[Any, ...]) -> object:
    """`copyreg.__newobj_ex__(class, args, kwargs)`."""
    if len(args) != 3:
        raise PickleError("copyreg.__newobj_ex__ without a class")
    made = machine.call(args[0], args[1])
    if type(made) is Opaque:
        made.kwargs = args[2]
    return made


CONTAINERS: Final[Mapping[tuple[str, str], Builder]] = MappingProxyType(
    {
        ("collections", "OrderedDict"): _mapping,
        ("collections", "Counter"): _mapping,
        ("collections", "defaultdict"): _mapping,
        ("builtins", "set"): _elements,
        ("builtins", "frozenset"): _elements,
        ("builtins", "bytearray"): _bytes,
        ("builtins", "bytes"): _bytes,
        ("torch", "Size"): _size,
        ("_codecs", "encode"): _encoded,
        ("copyreg", "_reconstructor"): _reconstructed,
        ("copyreg", "__newobj__"): _new,
        ("copyreg", "__newobj_ex__"): _new_ex,
    }
)
"""(module, name) -> builder of the result of a call to it.

Only names that `torch.load(weights_only=True)` allows, and copyreg's functions that create objects.
"""

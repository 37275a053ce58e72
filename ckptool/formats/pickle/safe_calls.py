"""Recorded call to an allowed builtin -> the plain container or node that the call would return."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

from ckptool.formats.pickle.nodes import (
    ByteArrayNode,
    GlobalName,
    MappingNode,
    PickleError,
    SetNode,
    SizeNode,
    UnresolvedObject,
    require_hashable_key,
)
from ckptool.formats.pickle.storage_ids import DEVICE_TYPE
from ckptool.formats.pickle.tensors.rebuild_functions import REBUILD_FUNCTIONS

_MAX_BYTEARRAY_BYTES: Final = 1 << 20
"""Maximum n of a `bytearray(n)`, in bytes."""


class MemoryBudget(Protocol):
    """The part of `PickleMachine` that a `CallBuilder` uses."""

    def charge_memory(self, nbytes: int) -> None: ...

    def check_key(self, mapping: object, key: object) -> None: ...

    def note_bytes(self, content: bytes) -> None: ...

    def record_call(self, func: object, args: object) -> object: ...

    def record_global(self, module: str, name: str) -> GlobalName: ...

    def record_creation(self, cls: object, args: object) -> object: ...


CallBuilder = Callable[[Any, tuple[Any, ...]], object]


def _build_default_dict(machine: MemoryBudget, args: tuple[Any, ...]) -> object:
    """`defaultdict(factory, mapping)`: the factory is recorded as a global, and nothing more."""
    mapping = _build_mapping(machine, args[1:])
    mapping.kind = "defaultdict", args[0] if args else None
    return mapping


def _build_counter(machine: MemoryBudget, args: tuple[Any, ...]) -> object:
    if args and not isinstance(args[0], dict):  # of pairs it would count the pairs
        raise PickleError(f"a Counter is built from a {type(args[0]).__name__}")
    mapping = _build_mapping(machine, args)
    mapping.kind = ("Counter",)
    return mapping


def _build_mapping(machine: MemoryBudget, args: tuple[Any, ...]) -> MappingNode:
    mapping = MappingNode()
    if not args:
        return mapping
    source = _get_only_argument(args, "a mapping")
    machine.charge_memory(64 * len(source) if isinstance(source, dict | list | tuple) else 0)
    if isinstance(source, dict):
        for key, value in source.items():
            machine.check_key(mapping, key)
            mapping[key] = value
    elif isinstance(source, list | tuple):
        for pair in source:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise PickleError("a mapping is built from something other than pairs")
            machine.check_key(mapping, pair[0])
            mapping[pair[0]] = pair[1]
    else:
        raise PickleError(f"a mapping is built from a {type(source).__name__}")
    return mapping


def _build_frozenset(machine: MemoryBudget, args: tuple[Any, ...]) -> object:
    return SetNode(_build_set(machine, args).items, is_frozen=True)


def _build_set(machine: MemoryBudget, args: tuple[Any, ...]) -> SetNode:
    source = _get_only_argument(args, "a set") if args else ()
    if isinstance(source, SetNode):
        source = source.items
    if not isinstance(source, list | tuple):
        raise PickleError(f"a set is built from a {type(source).__name__}")
    machine.charge_memory(64 * len(source))
    return SetNode([require_hashable_key(item) for item in source])


def _build_torch_size(machine: MemoryBudget, args: tuple[Any, ...]) -> object:
    source = _get_only_argument(args, "a torch.Size") if args else ()
    if not isinstance(source, list | tuple) or any(type(size) is not int for size in source):
        raise PickleError(f"a torch.Size is built from a {type(source).__name__}")
    machine.charge_memory(8 * len(source))
    return SizeNode(source)


def _encode_latin1(machine: MemoryBudget, args: tuple[Any, ...]) -> object:
    """`_codecs.encode(text, "latin1")`: bytes as pickle protocols 0 to 2 write them."""
    if not args or type(args[0]) is not str or args[1:] not in (("latin1",), ("latin-1",)):
        raise PickleError("_codecs.encode of something other than Latin-1 text")
    machine.charge_memory(len(args[0]))
    content = args[0].encode("latin-1")
    machine.note_bytes(content)
    return content


def _build_bytearray(machine: MemoryBudget, args: tuple[Any, ...]) -> object:
    content = _build_bytes(machine, args)
    machine.charge_memory(len(content))
    return ByteArrayNode(content)


def _build_bytes(machine: MemoryBudget, args: tuple[Any, ...]) -> bytes:
    source = args[0] if args else b""
    if type(source) is str and args[1:] in (("latin1",), ("latin-1",)):
        machine.charge_memory(len(source))
        content = source.encode("latin-1")
        machine.note_bytes(content)
        return content
    if type(source) is int and 0 <= source <= _MAX_BYTEARRAY_BYTES:
        machine.charge_memory(source)
        return bytes(source)
    if type(source) is int:
        raise PickleError(f"builtins.bytearray would allocate {source} bytes")
    if type(source) is not bytes or args[1:]:
        raise PickleError(f"a bytearray is built from a {type(source).__name__}")
    return source


def _reconstruct_object(machine: MemoryBudget, args: tuple[Any, ...]) -> object:
    """`copyreg._reconstructor(class, base, base_value)`: objects of protocols 0 and 1."""
    if len(args) != 3 or type(args[0]) is not GlobalName:
        raise PickleError("copyreg._reconstructor without a class")
    node = machine.record_call(args[0], ())
    if type(node) is UnresolvedObject and isinstance(args[2], dict):
        node.pairs = args[2]
    elif type(node) is UnresolvedObject and isinstance(args[2], list):
        node.items = args[2]
    elif type(node) is UnresolvedObject and args[2] is not None:
        node.args = (args[2],)
    return node


def _build_complex(machine: MemoryBudget, args: tuple[Any, ...]) -> object:
    if not all(type(part) in {int, float} for part in args) or len(args) > 2:
        raise PickleError("a complex number contains something other than numbers")
    return UnresolvedObject(machine.record_global("builtins", "complex"), args)


def _build_device(machine: MemoryBudget, args: tuple[Any, ...]) -> object:
    """`torch.device("cuda", 0)`: type and index."""
    name, index = (*args, 0, 0)[:2]
    is_device = type(name) is str and DEVICE_TYPE.fullmatch(name.partition(":")[0])
    if not is_device or type(index) is not int or len(args) > 2:
        raise PickleError("a torch.device without a device type")
    return UnresolvedObject(machine.record_global("torch", "device"), args)


def _build_newobj(machine: MemoryBudget, args: tuple[Any, ...]) -> object:
    """`copyreg.__newobj__(class, *args)`."""
    if not args:
        raise PickleError("copyreg.__newobj__ without a class")
    return machine.record_creation(args[0], args[1:])


def _build_newobj_ex(machine: MemoryBudget, args: tuple[Any, ...]) -> object:
    """`copyreg.__newobj_ex__(class, args, kwargs)`."""
    if len(args) != 3:
        raise PickleError("copyreg.__newobj_ex__ without a class")
    node = machine.record_creation(args[0], args[1])
    if type(node) is UnresolvedObject:
        node.kwargs = args[2]
    return node


def _get_only_argument(args: tuple[Any, ...], description: str) -> Any:
    if len(args) > 1:
        raise PickleError(f"{description} is built from {len(args)} arguments")
    return args[0]


SAFE_CALL_BUILDERS: Final[Mapping[tuple[str, str], CallBuilder]] = MappingProxyType(
    {
        ("collections", "OrderedDict"): _build_mapping,
        ("collections", "Counter"): _build_counter,
        ("collections", "defaultdict"): _build_default_dict,
        ("builtins", "set"): _build_set,
        ("builtins", "frozenset"): _build_frozenset,
        ("builtins", "bytearray"): _build_bytearray,
        ("builtins", "bytes"): _build_bytes,
        ("builtins", "complex"): _build_complex,
        ("torch", "Size"): _build_torch_size,
        ("torch", "device"): _build_device,
        ("_codecs", "encode"): _encode_latin1,
        ("copyreg", "_reconstructor"): _reconstruct_object,
        ("copyreg", "__newobj__"): _build_newobj,
        ("copyreg", "__newobj_ex__"): _build_newobj_ex,
    }
)
"""(module, name) -> builder of the result of a call to it.

Only names that `torch.load(weights_only=True)` allows, and copyreg's functions that create objects.
"""

PLAIN_DATA_CALLS: Final = frozenset(
    {
        ("builtins", "complex"),
        ("torch", "device"),
        ("torch.serialization", "_get_layout"),
    }
)
"""Calls of safe names that return plain data, which takes no state."""
PLAIN_CALLS: Final = PLAIN_DATA_CALLS | frozenset(REBUILD_FUNCTIONS)
"""Calls of safe names that picklers write and that no builder replaces: data and tensors."""
EMPTY_WHEN_NEW: Final = frozenset(
    {
        ("collections", "OrderedDict"),
        ("collections", "Counter"),
        ("collections", "defaultdict"),
        ("builtins", "set"),
        ("builtins", "bytearray"),
    }
)
"""Classes that `__init__` fills, and `__new__` leaves empty whatever its arguments."""

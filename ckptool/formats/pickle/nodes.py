"""Inert nodes: objects of a pickle as the calls that would create them, none of them executed."""

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct


class ByteArrayNode(bytes):
    """A bytearray."""

    __slots__ = ()


class SizeNode(tuple[int, ...]):
    """A torch.Size."""

    __slots__ = ()


ATOMIC_TYPES = frozenset({type(None), bool, int, float, str, bytes, ByteArrayNode})
"""Types whose values are their own nodes."""
SEQUENCE_TYPES = frozenset({list, tuple, SizeNode})
"""Types of nodes whose children have numbers."""


class PickleError(ValueError):
    """A stream contradicts the pickle format, or asks for more than the limits allow."""


class TruncatedPickleError(PickleError):
    """The data end before the pickle does: with more bytes it may be complete."""


class BrokenPickleError(PickleError):
    """The data are no pickle from here on, for every unpickler."""


class PickleTreeError(ValueError):
    """The content of a pickle contradicts itself or its container."""


GETATTR: Final = ("builtins", "getattr")


class GlobalName:
    """A name that the pickle would import; one object per name, so that it can be a dict key."""

    __slots__ = ("builder", "computed", "module", "name")

    def __init__(self, module: str, name: str, *, computed: bool = False) -> None:
        self.module = module
        self.name = name
        self.computed = computed
        """Whether the name is determined at load time, by process state or by a call."""
        self.builder: Callable[[Any, tuple[Any, ...]], object] | None = None
        """Builder of the result of a call, for names in SAFE_CALL_BUILDERS; else None."""

    @property
    def qualified_name(self) -> str:
        return f"{self.module}.{self.name}"


class UnresolvedObject(Struct, eq=False):
    """Call recorded but not executed: function, args, state and items of an object."""

    func: "GlobalName | UnresolvedObject"
    given_args: "tuple[Any, ...] | PersistentReference"
    """`args`; of a tensor that torch.save wrote its storage alone, whose `call` has the others."""
    kwargs: Any = None
    state: Any = None
    """Operand of BUILD: the `__dict__`, or the argument of `__setstate__`."""
    items: list[Any] | None = None
    """Items appended: elements of a deque or of a list subclass."""
    pairs: dict[Any, Any] | None = None
    """Items set: key -> value of a dict subclass."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments; those of a tensor are put together when they are asked for."""
        args = self.given_args
        if isinstance(args, PersistentReference):
            call: Any = args.call
            args = self.given_args = (args, *call.view, call.requires_grad, MappingNode())
        return args

    @args.setter
    def args(self, args: tuple[Any, ...]) -> None:
        self.given_args = args

    @property
    def callee_name(self) -> tuple[str, str]:
        """(module, name) of the callee; ("", "") if it is no GlobalName."""
        func = self.func
        return (func.module, func.name) if type(func) is GlobalName else ("", "")

    @property
    def qualified_name(self) -> str:
        func = self.func
        return func.qualified_name if type(func) is GlobalName else "an object made at load time"


class MappingNode(dict[Any, Any]):
    """OrderedDict, Counter or defaultdict: a dict that may have attributes."""

    __slots__ = ("_kind", "_state")

    @property
    def kind(self) -> tuple[object, ...]:
        """Name of its class, and of a defaultdict the factory as well."""
        return getattr(self, "_kind", ("OrderedDict",))

    @kind.setter
    def kind(self, kind: tuple[object, ...]) -> None:
        self._kind = kind

    @property
    def state(self) -> Any:
        """Operand of BUILD, or None; set only if given: each tensor has an OrderedDict of hooks."""
        return getattr(self, "_state", None)

    @state.setter
    def state(self, state: object) -> None:
        self._state = state


class TensorCall(Struct, eq=False, frozen=True):
    """What calls of `_rebuild_tensor_v2` have in common that differ in the storage's key alone."""

    id_head: tuple[Any, Any]
    """What the storage's id has before the key: "storage" and the class."""
    id_tail: tuple[Any, ...]
    """What it has after the key: location, numel, and None in a file of torch before 1.6."""
    view: tuple[Any, Any, Any]
    """Offset, size, stride."""
    requires_grad: bool
    location_puts: tuple[Any, ...]
    """The location if it gets a memo slot; else ()."""
    view_puts: tuple[Any, ...]
    """Which of size and stride get one."""
    part_count: int
    """Memo slots of location, id, size, stride, hooks and arguments: those that the call fills."""


class PersistentReference(Struct, eq=False):
    """An object outside the pickle, referred to by a persistent id: in torch's files, a storage."""

    given_id: Any
    """`persistent_id`; of the storage of a `call`, its key alone."""
    target: Any = None
    """SavedStorage or TensorInfo that the container has for the id; None until resolved.

    A GlobalName is the class of a module, which files from before torch 1.6 save with its source
    code: the writer writes the name alone.
    """
    call: TensorCall | None = None
    """The call of `_rebuild_tensor_v2` that it is the storage of, if torch.save wrote that."""

    @property
    def persistent_id(self) -> Any:
        """Operand of the opcode; that of a storage is put together when it is asked for."""
        own_id, call = self.given_id, self.call
        if call is None or type(own_id) is tuple:
            return own_id
        return (*call.id_head, own_id, *call.id_tail)

    @persistent_id.setter
    def persistent_id(self, whole_id: Any) -> None:
        self.given_id = whole_id


class SetNode:
    """A set or a frozenset: members in the order of the file; compared by identity."""

    __slots__ = ("is_frozen", "items")

    def __init__(self, items: list[Any], *, is_frozen: bool = False) -> None:
        self.items = items
        self.is_frozen = is_frozen


def require_hashable_key(key: object) -> object:
    """Return `key` if Python can hash it in bounded time.

    Raises:
        PickleError: it is unhashable, a tuple of 256 or more nodes, or an int of more than 64 bits.
    """
    budget = 256
    todo = [key]
    while todo:
        node = todo.pop()
        budget -= 1
        if isinstance(node, dict | list | bytearray | ByteArrayNode):
            raise PickleError(f"a {type(node).__name__} is used as a key but is not hashable")
        if type(node) is int and node.bit_length() > 64:
            raise PickleError("a number of more than 64 bits is used as a key")
        if isinstance(node, tuple):
            todo.extend(node[:budget])
        if budget <= 0:
            raise PickleError("a tuple used as a key is too large")
    return key

"""Inert nodes: objects of a pickle as the calls that would create them, none of them executed."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

ATOMIC_TYPES = frozenset({type(None), bool, int, float, str, bytes})
"""Types whose values are their own nodes."""


class PickleError(ValueError):
    """A stream contradicts the pickle format, or asks for more than the limits allow."""


class TruncatedPickleError(PickleError):
    """The data end before the pickle does: with more bytes it may be complete."""


class BrokenPickleError(PickleError):
    """The data are no pickle from here on, for every unpickler."""


class PickleTreeError(ValueError):
    """The content of a pickle contradicts itself or its container."""


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
    args: tuple[Any, ...]
    kwargs: Any = None
    state: Any = None
    """Operand of BUILD: the `__dict__`, or the argument of `__setstate__`."""
    items: list[Any] | None = None
    """Items appended: elements of a deque or of a list subclass."""
    pairs: dict[Any, Any] | None = None
    """Items set: key -> value of a dict subclass."""

    @property
    def callee_name(self) -> tuple[str, str]:
        """(module, name) of the callee; ("", "") if it is no GlobalName."""
        func = self.func
        return (func.module, func.name) if type(func) is GlobalName else ("", "")

    @property
    def qualified_name(self) -> str:
        func = self.func
        return func.qualified_name if type(func) is GlobalName else "an object made at load time"


class PersistentReference(Struct, eq=False):
    """An object outside the pickle, referred to by a persistent id: in torch's files, a storage."""

    id: Any
    target: Any = None
    """SavedStorage or TensorInfo that the container has for the id; None until resolved.

    A GlobalName is the class of a module, which files from before torch 1.6 save with its source
    code: the writer writes the name alone.
    """


class MappingNode(dict[Any, Any]):
    """OrderedDict, Counter or defaultdict: a dict that may have attributes."""

    __slots__ = ("_state",)

    @property
    def state(self) -> Any:
        """Operand of BUILD, or None; set only if given: each tensor has an OrderedDict of hooks."""
        return getattr(self, "_state", None)

    @state.setter
    def state(self, state: object) -> None:
        self._state = state


class SetNode:
    """A set or a frozenset: members in the order of the file; compared by identity."""

    __slots__ = ("items",)

    def __init__(self, items: list[Any]) -> None:
        self.items = items


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
        if isinstance(node, dict | list | bytearray):
            raise PickleError(f"a {type(node).__name__} is used as a key but is not hashable")
        if type(node) is int and node.bit_length() > 64:
            raise PickleError("a number of more than 64 bits is used as a key")
        if type(node) is tuple:
            todo.extend(node[:budget])
        if budget <= 0:
            raise PickleError("a tuple used as a key is too large")
    return key

"""What a pickle describes -> inert nodes: recipes that nothing here follows."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

ATOMS = frozenset({type(None), bool, int, float, str, bytes})
"""Types that stand for themselves."""


class PickleError(ValueError):
    """A stream contradicts the pickle format, or asks for more than the limits allow."""


class StarvedError(PickleError):
    """The data end before the pickle does: more of them may help."""


class Global:
    """A name that the pickle would import; one object a name, so that it can be a key."""

    __slots__ = ("build", "computed", "module", "name")

    def __init__(self, module: str, name: str, *, computed: bool = False) -> None:
        self.module = module
        self.name = name
        self.computed = computed
        """Whether what it refers to is decided at load time: by process state, or by a call."""
        self.build: Callable[[Any, tuple[Any, ...]], object] | None = None
        """Makes a plain container of a call to it, for the few names that are nothing else."""

    @property
    def qualified(self) -> str:
        return f"{self.module}.{self.name}"


class Opaque(Struct, eq=False):
    """An object that only the named class or function could make: the recipe, never the object."""

    func: "Global | Opaque"
    args: tuple[Any, ...]
    kwargs: Any = None
    state: Any = None
    """What BUILD hands over: the `__dict__`, or whatever `__setstate__` would get."""
    items: list[Any] | None = None
    """Appended to it: a deque's elements, a list subclass's."""
    pairs: dict[Any, Any] | None = None
    """Set in it: a dict subclass's items."""

    @property
    def name(self) -> tuple[str, str]:
        """(module, name) of what is called."""
        func = self.func
        return (func.module, func.name) if type(func) is Global else ("", "")

    @property
    def qualified(self) -> str:
        func = self.func
        return func.qualified if type(func) is Global else "an object made at load time"


class Persistent(Struct, eq=False):
    """An object that the pickle leaves to its container, by an id: in torch's files, a storage."""

    id: Any
    resolved: Any = None
    """What the container says it is."""


class Ordered(dict[Any, Any]):
    """An OrderedDict, a Counter or a defaultdict: a dict that may have attributes."""

    __slots__ = ("_state",)

    @property
    def state(self) -> Any:
        """What BUILD hands over; each tensor has an OrderedDict of hooks, and few have this."""
        return getattr(self, "_state", None)

    @state.setter
    def state(self, state: object) -> None:
        self._state = state


class Elements:
    """A set or a frozenset, its members in the order of the file; equal only to itself."""

    __slots__ = ("items",)

    def __init__(self, items: list[Any]) -> None:
        self.items = items


def checked_key(key: object) -> object:
    """Return `key` if it may be hashed without running away, as Python itself would hash it.

    Raises:
        PickleError: it is unhashable, or made to be slow: a deep or a wide tuple, a huge number.
    """
    budget = 256
    todo = [key]
    while todo:
        node = todo.pop()
        budget -= 1
        if isinstance(node, dict | list | bytearray):
            raise PickleError(f"a {type(node).__name__} is used as a key: it is not hashable")
        if type(node) is int and node.bit_length() > 64:
            raise PickleError("a number of more than 64 bits is used as a key")
        if type(node) is tuple:
            todo.extend(node[:budget])
        if budget <= 0:
            raise PickleError("a tuple used as a key is too large")
    return key

"""Inert pickle machine: stack, memo, and a record of every global that the pickle names."""

from collections.abc import Callable
from typing import Any, Final

from ckptool.formats.builders import CONTAINERS
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import Global, Opaque, Persistent, PickleError, StarvedError


class Stop(Exception):  # noqa: N818 - it ends a stream and is no error
    """Raised by the STOP opcode, with the top of the stack and the position after the opcode."""

    def __init__(self, value: object, end: int) -> None:
        super().__init__()
        self.value = value
        self.end = end


class Memo:
    """Memo of a pickle: slot number -> object.

    Picklers number the slots consecutively: those are in a list, as a dict takes ten times the
    memory. Other slots are in a dict: a list up to a slot number of the file has no size limit.
    """

    __slots__ = ("others", "slots")

    def __init__(self) -> None:
        self.slots: list[Any] = []
        """The consecutive slots from 0."""
        self.others: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.slots) + len(self.others)

    def put(self, slot: int, value: object) -> None:
        if slot < len(self.slots):
            self.slots[slot] = value
        elif slot == len(self.slots) and not self.others:
            self.slots.append(value)
        else:
            self.others[slot] = value

    def get(self, slot: int) -> object:
        """Return the object in a slot.

        Raises:
            KeyError: the slot is empty.
        """
        return self.slots[slot] if slot < len(self.slots) else self.others[slot]


class Machine:
    """State of one run over a pickle: stack, memo, and the globals that it names."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.data = data
        self.limits = limits
        self.limit = len(data)
        """Position of the end of the open frame, or of the data if no frame is open."""
        self.framed = False
        self.protocol = 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        """The stacks below the open MARKs, outermost first."""
        self.memo = Memo()
        self.globals: dict[tuple[str, str], Global] = {}
        self.persistent: list[Persistent] = []
        self.embedded: dict[int, bytes] = {}
        """id -> byte string that is passed to a function in `_PICKLE_LOADER_NAMES`."""
        self.numbers: dict[tuple[Any, ...], tuple[int, ...]] = {}
        """Tuples of ints that repeat, such as shapes and strides: one object for equal ones."""
        self.blobs: dict[int, int] = {}
        """id of a long byte string -> its offset in the data."""
        self._budget = limits.pickle_bytes

    def use(self, module: str, name: str) -> Global:
        """Record that the pickle would import `name` from `module`; the same object each time."""
        found = self.globals.get((module, name))
        if found is None:
            if self.protocol < 3 and not module.startswith("torch"):
                module, name = _python3_name(module, name)
            found = self.globals.get((module, name)) or Global(module, name)
            found.build = CONTAINERS.get((module, name))
            self.globals[module, name] = found
        return found

    def use_computed(self, module: object, name: object) -> Global:
        """Record a name that is determined at load time; parts that are no str are "<computed>"."""
        words = [part if isinstance(part, str) else "<computed>" for part in (module, name)]
        found = self.globals.setdefault((words[0], words[1]), Global(words[0], words[1]))
        found.computed = True
        return found

    def call(self, func: object, args: object) -> object:
        """Return the node for the result of `func(*args)`, without calling it.

        Raises:
            PickleError: `args` is no tuple, or `func` is nothing callable.
        """
        if type(args) is not tuple:
            raise PickleError(f"a call with {type(args).__name__} for arguments")
        if type(func) is Global:
            if func.build is not None:
                return func.build(self, args)
            if func.name in _LOADERS and args and type(args[0]) is bytes:
                self.embedded[id(args[0])] = args[0]
            return Opaque(func, args)
        if type(func) is Opaque:
            self.use_computed("<computed>", "<call>")
            return Opaque(func, args)
        raise PickleError(f"a {type(func).__name__} is called")

    def spend(self, nbytes: int) -> None:
        """Subtract `nbytes` from the memory budget: few opcodes could copy a lot of data.

        Raises:
            PickleError: the budget, `Limits.pickle_bytes`, is spent.
        """
        self._budget -= nbytes
        if self._budget < 0:
            raise PickleError(f"it takes more than {self.limits.pickle_bytes} bytes of memory")

    def once(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return one object for equal tuples of ints; 1, 1.0 and True stay distinct."""
        for item in items:
            if type(item) is not int:
                return items
        known = self.numbers.get(items)
        if known is None:
            known = items
            if len(self.numbers) < _NUMBERS:
                self.numbers[items] = items
        return known

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.outer.pop()
        return items

    def line(self, pos: int) -> tuple[bytes, int]:
        end = self.data.find(b"\n", pos, self.limit)
        if end < 0:
            raise StarvedError("a line has no end")
        return self.data[pos:end], end + 1


Handler = Callable[[Machine, int], int]
"""(machine, position after the opcode) -> position of the next opcode."""


def register(table: dict[int, Handler], opcode: int) -> Callable[[Handler], Handler]:
    """Return a decorator that enters a handler of `opcode` in `table`."""

    def enter(handler: Handler) -> Handler:
        table[opcode] = handler
        return handler

    return enter


_NUMBERS: Final = 256
"""Models have few distinct shapes; more tuples of equal hash would make lookups slow."""
_LOADERS: Final = frozenset({"loads", "_loads", "_load_from_bytes"})
"""Functions that unpickle their first argument, in any module."""


def _python3_name(module: str, name: str) -> tuple[str, str]:
    from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name

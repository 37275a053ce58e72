"""The opcodes of a pickle -> a stack, a memo, and a record of every name that is used."""

from collections.abc import Callable
from typing import Any, Final

from ckptool.formats.builders import CONTAINERS
from ckptool.formats.limits import Limits
from ckptool.formats.nodes import Global, Opaque, Persistent, PickleError, StarvedError


class Stop(Exception):  # noqa: N818 - it ends a stream and is no error
    """The STOP opcode: the stream is complete."""

    def __init__(self, value: object, end: int) -> None:
        super().__init__()
        self.value = value
        self.end = end


class Memo:
    """What a pickle puts aside to use again, by the number of its slot.

    Picklers number the slots one after the other: those are a list. A dict of them takes ten times
    the memory, and a list of any number that a file names would take what it likes.
    """

    __slots__ = ("others", "slots")

    def __init__(self) -> None:
        self.slots: list[Any] = []
        """The slots from 0 on, for as long as each one comes next."""
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
        """Return what is in a slot.

        Raises:
            KeyError: nothing is.
        """
        return self.slots[slot] if slot < len(self.slots) else self.others[slot]


class Machine:
    """The state of one run over a pickle: stack, memo, and a record of every name it uses."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.data = data
        self.limits = limits
        self.limit = len(data)
        """End of the frame that is open, or of the data."""
        self.framed = False
        self.protocol = 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        """The stacks below the open MARKs."""
        self.memo = Memo()
        self.globals: dict[tuple[str, str], Global] = {}
        self.persistent: list[Persistent] = []
        self.embedded: dict[int, bytes] = {}
        """Byte strings that are handed to something that would load them, each once, by id."""
        self.numbers: dict[tuple[Any, ...], tuple[int, ...]] = {}
        """Tuples of numbers that come again and again: shapes and strides."""
        self.blobs: dict[int, int] = {}
        """id of a long byte string -> where it starts in the data."""
        self._budget = limits.pickle_bytes

    def use(self, module: str, name: str) -> Global:
        """Record that the pickle would import `name` from `module`."""
        found = self.globals.get((module, name))
        if found is None:
            if self.protocol < 3 and not module.startswith("torch"):
                module, name = _python3_name(module, name)
            found = self.globals.get((module, name)) or Global(module, name)
            found.build = CONTAINERS.get((module, name))
            self.globals[module, name] = found
        return found

    def use_computed(self, module: object, name: object) -> Global:
        """Record a name that is only known when the pickle is loaded."""
        words = [part if isinstance(part, str) else "<computed>" for part in (module, name)]
        found = self.globals.setdefault((words[0], words[1]), Global(words[0], words[1]))
        found.computed = True
        return found

    def call(self, func: object, args: object) -> object:
        """Return the node for calling `func`, without calling it."""
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
        """Count memory that a few opcodes would multiply."""
        self._budget -= nbytes
        if self._budget < 0:
            raise PickleError(f"it takes more than {self.limits.pickle_bytes} bytes of memory")

    def once(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return `items`, the same object for the same few numbers; not for 1, 1.0 and True."""
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
"""Takes the machine and the position after the opcode, returns the position of the next opcode."""


def register(table: dict[int, Handler], opcode: int) -> Callable[[Handler], Handler]:
    """Enter the decorated function in `table`."""

    def enter(handler: Handler) -> Handler:
        table[opcode] = handler
        return handler

    return enter


_NUMBERS: Final = 256
"""Models have few shapes, and a file may be made of tuples with one hash."""
_LOADERS: Final = frozenset({"loads", "_loads", "_load_from_bytes"})
"""Names that read a pickle from their first argument, wherever they stand."""


def _python3_name(module: str, name: str) -> tuple[str, str]:
    from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name

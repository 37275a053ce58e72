"""The bytes of a pickle -> a graph that can be written again: every call stands as it was made.

`pickles.py` reads for describing: an OrderedDict and a Counter are both mappings there. Here
nothing is made plain, so that `pickle_writer.py` can write what was read without loss.
"""

from struct import Struct
from typing import Any, Final, NamedTuple

from ckptool.formats.collector import paused_collector
from ckptool.formats.limits import Limits
from ckptool.formats.machine import Handler, Machine, Stop
from ckptool.formats.nodes import Global, Opaque, Persistent, PickleError
from ckptool.formats.opcodes import HANDLERS

_UINT32: Final = Struct("<I").unpack_from


class Class(Global):
    """What NEWOBJ makes an instance of: `cls.__new__(cls, *args)`, where REDUCE is `cls(*args)`."""

    __slots__ = ("cls",)

    def __init__(self, cls: object) -> None:
        super().__init__("", "")
        self.cls = cls
        """A Global, or an object that is made at load time."""


class Members(list[Any]):
    """A set or a frozenset that an opcode made, its members in the order of the file."""

    frozen = False


class Graph(NamedTuple):
    """A pickle that can be written again."""

    root: Any
    protocol: int


def read_graph(data: bytes, limits: Limits, start: int = 0) -> Graph:
    """Return the graph of the pickle at `start`.

    The pickle must have been described before: `pickles.py` checks what is only used here.

    Raises:
        PickleError: it cannot be written again as it is.
    """
    machine = _Verbatim(data, limits)
    pos = start
    try:
        with paused_collector():
            for _ in range(limits.opcodes):
                pos = _TABLE[data[pos]](machine, pos + 1)
                if pos >= machine.limit:
                    machine.limit = len(data)
    except Stop as stop:
        return Graph(stop.value, machine.protocol)
    except (IndexError, KeyError) as error:
        raise PickleError("the stream ends before its STOP") from error
    raise PickleError(f"it has more than {limits.opcodes} opcodes")


class _Verbatim(Machine):
    """A machine that keeps every name as it is spelled, and every call as a call."""

    def use(self, module: str, name: str) -> Global:
        found = self.globals.get((module, name))
        if found is None:
            found = self.globals[module, name] = Global(module, name)
        return found

    def use_computed(self, module: object, name: object) -> Global:
        raise PickleError(f"{module}.{name} is a name that is only known when it is loaded")

    def once(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        return items  # what the file has twice is written twice

    def call(self, func: object, args: object) -> object:
        if type(args) is not tuple or not isinstance(func, Global | Opaque):
            raise PickleError("a call of something that is no name")
        return Opaque(func, args)


def _newobj(m: Machine, pos: int) -> int:
    args = m.stack.pop()
    m.stack[-1] = Opaque(Class(m.stack[-1]), args)
    return pos


def _newobj_ex(m: Machine, pos: int) -> int:
    kwargs = m.stack.pop()
    pos = _newobj(m, pos)
    m.stack[-1].kwargs = kwargs
    return pos


def _bytearray8(m: Machine, pos: int) -> int:
    pos = HANDLERS[0x96](m, pos)
    m.stack[-1] = bytearray(m.stack[-1])
    return pos


def _empty_set(m: Machine, pos: int) -> int:
    m.stack.append(Members())
    return pos


def _frozenset(m: Machine, pos: int) -> int:
    items = Members(m.pop_mark())
    items.frozen = True
    m.stack.append(items)
    return pos


def _additems(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    m.stack[-1].extend(items)
    return pos


def _binpersid(m: Machine, pos: int) -> int:
    node = Persistent(m.stack[-1])
    m.persistent.append(node)
    m.stack[-1] = node
    return pos


# The loop of `pickles.py` has these six in itself, for speed.


def _long_binput(m: Machine, pos: int) -> int:
    m.memo.put(_UINT32(m.data, pos)[0], m.stack[-1])
    return pos + 4


def _binint1(m: Machine, pos: int) -> int:
    m.stack.append(m.data[pos])
    return pos + 1


def _binunicode(m: Machine, pos: int) -> int:
    end: int = pos + 4 + _UINT32(m.data, pos)[0]
    m.stack.append(str(m.data[pos + 4 : end], "utf-8", "surrogatepass"))
    return end


def _binget(m: Machine, pos: int) -> int:
    m.stack.append(m.memo.get(m.data[pos]))
    return pos + 1


def _tuple(m: Machine, pos: int) -> int:
    items = tuple(m.pop_mark())
    m.stack.append(items)
    return pos


def _mark(m: Machine, pos: int) -> int:
    m.outer.append(m.stack)
    m.stack = []
    return pos


_OURS: Final[dict[int, Handler]] = {
    0x81: _newobj, 0x92: _newobj_ex, 0x8F: _empty_set, 0x91: _frozenset, 0x90: _additems,
    0x51: _binpersid, 0x72: _long_binput, 0x4B: _binint1, 0x68: _binget, 0x58: _binunicode,
    0x74: _tuple, 0x28: _mark, 0x96: _bytearray8,
}  # fmt: skip
_TABLE: Final = tuple(_OURS.get(opcode, handler) for opcode, handler in enumerate(HANDLERS))

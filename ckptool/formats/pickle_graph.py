"""Pickle bytes -> PickleGraph: every call kept as recorded, for writing the pickle again.

`reader.py` reads to describe: there an OrderedDict and a Counter are both a MappingNode. Here
nothing is simplified, so that `writer.py` writes the pickle without loss.
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
    """Class operand of NEWOBJ: `cls.__new__(cls, *args)`, where REDUCE is `cls(*args)`."""

    __slots__ = ("cls",)

    def __init__(self, cls: object) -> None:
        super().__init__("", "")
        self.cls = cls
        """A GlobalName, or a node of an object that is created at load time."""


class Members(list[Any]):
    """A set or a frozenset created by an opcode, members in the order of the file."""

    frozen = False


class Graph(NamedTuple):
    """Root node and protocol of a pickle, for `write_pickle`."""

    root: Any
    protocol: int


def read_graph(data: bytes, limits: Limits, start: int = 0) -> Graph:
    """Return the graph of the pickle at `start`.

    The pickle must have passed `parse_pickle` before, whose checks are not repeated here.

    Raises:
        PickleError: it cannot be written again without loss.
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
    """PickleMachine that keeps every global as spelled and every call as a call."""

    def use(self, module: str, name: str) -> Global:
        found = self.globals.get((module, name))
        if found is None:
            found = self.globals[module, name] = Global(module, name)
        return found

    def use_computed(self, module: object, name: object) -> Global:
        raise PickleError(f"{module}.{name} is a name that is only known when it is loaded")

    def once(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        return items  # equal tuples of the file are written separately

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


# `reader._run_slice` has these six opcodes inlined, for speed.


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

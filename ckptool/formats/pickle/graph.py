"""Pickle bytes -> PickleGraph: every call kept as recorded, for writing the pickle again.

`reader.py` reads to describe: there an OrderedDict and a Counter are both a MappingNode. Here
nothing is simplified, so that `writer.py` writes the pickle without loss.
"""

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

from ckptool.formats.files.gc_pause import pause_gc
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.machine import OpcodeHandler, PickleMachine, PickleStop
from ckptool.formats.pickle.nodes import (
    GlobalName,
    PersistentReference,
    PickleError,
    UnresolvedObject,
)
from ckptool.formats.pickle.opcodes import HANDLERS

_UINT32: Final = Struct("<I").unpack_from


class NewObjClass(GlobalName):
    """Class operand of NEWOBJ: `cls.__new__(cls, *args)`, where REDUCE is `cls(*args)`."""

    __slots__ = ("cls",)

    def __init__(self, cls: object) -> None:
        super().__init__("", "")
        self.cls = cls
        """A GlobalName, or a node of an object that is created at load time."""


class SetMembers(list[Any]):
    """A set or a frozenset created by an opcode, members in the order of the file."""

    is_frozen = False


class PickleGraph(NamedTuple):
    """Root node and protocol of a pickle, for `write_pickle`."""

    root: Any
    protocol: int
    persistent_references: Sequence[PersistentReference] = ()
    """Every reference in the graph, in the order of the file."""
    blob_offsets: Mapping[int, int] = {}
    """id of a byte string in the graph -> its offset in the data."""


def read_graph(data: bytes, limits: Limits) -> PickleGraph:
    """Return the graph of the pickle that `data` begins with.

    The pickle must have passed `parse_pickle` before, whose checks are not repeated here.

    Raises:
        PickleError: it cannot be written again without loss.
    """
    machine = _VerbatimMachine(data, limits)
    pos = 0
    try:
        with pause_gc():
            for _ in range(limits.opcodes):
                pos = _GRAPH_HANDLERS[data[pos]](machine, pos + 1)
                if pos >= machine.frame_end:
                    machine.frame_end = len(data)
    except PickleStop as stop:
        return PickleGraph(
            stop.value, machine.protocol, machine.persistent_references, machine.blob_offsets
        )
    except (IndexError, KeyError) as error:
        raise PickleError("the stream ends before its STOP") from error
    raise PickleError(f"it has more than {limits.opcodes} opcodes")


class _VerbatimMachine(PickleMachine):
    """PickleMachine that keeps every global as spelled and every call as a call."""

    def record_global(self, module: str, name: str) -> GlobalName:
        global_name = self.globals.get((module, name))
        if global_name is None:
            global_name = self.globals[module, name] = GlobalName(module, name)
        return global_name

    def record_computed_global(self, module: object, name: object) -> GlobalName:
        raise PickleError(f"{module}.{name} is a name that is only computed while loading")

    def intern_tuple(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        return items  # equal tuples of the file are written separately

    def record_call(self, func: object, args: object) -> object:
        if type(args) is not tuple or not isinstance(func, GlobalName | UnresolvedObject):
            raise PickleError("a call of something that is not a global")
        return UnresolvedObject(func, args)


def _load_newobj(m: PickleMachine, pos: int) -> int:
    args = m.stack.pop()
    m.stack[-1] = UnresolvedObject(NewObjClass(m.stack[-1]), args)
    return pos


def _load_newobj_ex(m: PickleMachine, pos: int) -> int:
    kwargs = m.stack.pop()
    pos = _load_newobj(m, pos)
    m.stack[-1].kwargs = kwargs
    return pos


def _load_bytearray8(m: PickleMachine, pos: int) -> int:
    pos = HANDLERS[0x96](m, pos)
    m.stack[-1] = bytearray(m.stack[-1])
    return pos


def _load_empty_set(m: PickleMachine, pos: int) -> int:
    m.stack.append(SetMembers())
    return pos


def _load_frozenset(m: PickleMachine, pos: int) -> int:
    items = SetMembers(m.pop_mark())
    items.is_frozen = True
    m.stack.append(items)
    return pos


def _load_additems(m: PickleMachine, pos: int) -> int:
    items = m.pop_mark()
    m.stack[-1].extend(items)
    return pos


def _load_binpersid(m: PickleMachine, pos: int) -> int:
    node = PersistentReference(m.stack[-1])
    m.persistent_references.append(node)
    m.stack[-1] = node
    return pos


# `reader._run_slice` has these five opcodes inlined, for speed.


def _load_long_binput(m: PickleMachine, pos: int) -> int:
    m.memo.put(_UINT32(m.data, pos)[0], m.stack[-1])
    return pos + 4


def _load_binunicode(m: PickleMachine, pos: int) -> int:
    end: int = pos + 4 + _UINT32(m.data, pos)[0]
    m.stack.append(str(m.data[pos + 4 : end], "utf-8", "surrogatepass"))
    return end


def _load_binget(m: PickleMachine, pos: int) -> int:
    m.stack.append(m.memo.get(m.data[pos]))
    return pos + 1


def _load_tuple(m: PickleMachine, pos: int) -> int:
    items = tuple(m.pop_mark())
    m.stack.append(items)
    return pos


def _load_mark(m: PickleMachine, pos: int) -> int:
    m.metastack.append(m.stack)
    m.stack = []
    return pos


_VERBATIM_HANDLERS: Final[dict[int, OpcodeHandler]] = {
    0x81: _load_newobj,
    0x92: _load_newobj_ex,
    0x8F: _load_empty_set,
    0x91: _load_frozenset,
    0x90: _load_additems,
    0x51: _load_binpersid,
    0x72: _load_long_binput,
    0x68: _load_binget,
    0x58: _load_binunicode,
    0x74: _load_tuple,
    0x28: _load_mark,
    0x96: _load_bytearray8,
}
_GRAPH_HANDLERS: Final = tuple(
    _VERBATIM_HANDLERS.get(opcode, handler) for opcode, handler in enumerate(HANDLERS)
)

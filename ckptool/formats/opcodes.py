"""Handlers of the opcodes for stack, memo, containers, globals, calls and frames."""

from functools import partial
from struct import Struct
from typing import Any, Final

from ckptool.formats.atoms import ATOMS, decimal
from ckptool.formats.machine import Handler, Machine, Stop, register
from ckptool.formats.nodes import (
    Elements,
    Global,
    Opaque,
    Ordered,
    Persistent,
    PickleError,
    StarvedError,
    checked_key,
)

_UINT16, _UINT32, _UINT64, _INT32 = Struct("<H"), Struct("<I"), Struct("<Q"), Struct("<i")

_TABLE: Final[dict[int, Handler]] = {}
_on = partial(register, _TABLE)


# -- the memo -------------------------------------------------------------------------


@_on(0x71)  # BINPUT
def _binput(m: Machine, pos: int) -> int:
    m.memo.put(m.data[pos], m.stack[-1])
    return pos + 1


@_on(0x94)  # MEMOIZE
def _memoize(m: Machine, pos: int) -> int:
    m.memo.put(len(m.memo), m.stack[-1])
    return pos


@_on(0x70)  # PUT
def _put(m: Machine, pos: int) -> int:
    line, pos = m.line(pos)
    m.memo.put(_slot(line), m.stack[-1])
    return pos


@_on(0x67)  # GET
def _get(m: Machine, pos: int) -> int:
    line, pos = m.line(pos)
    m.stack.append(m.memo.get(_slot(line)))
    return pos


@_on(0x6A)  # LONG_BINGET
def _long_binget(m: Machine, pos: int) -> int:
    m.stack.append(m.memo.get(_UINT32.unpack_from(m.data, pos)[0]))
    return pos + 4


def _slot(line: bytes) -> int:
    slot = decimal(line)
    if not 0 <= slot < 1 << 32:
        raise PickleError("a memo slot beyond 32 bits")
    return slot


# -- the stack ------------------------------------------------------------------------


@_on(0x30)  # POP
def _pop(m: Machine, pos: int) -> int:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()
    return pos


@_on(0x31)  # POP_MARK
def _pop_mark(m: Machine, pos: int) -> int:
    m.pop_mark()
    return pos


@_on(0x32)  # DUP
def _dup(m: Machine, pos: int) -> int:
    m.stack.append(m.stack[-1])
    return pos


# -- containers -----------------------------------------------------------------------


@_on(0x29)  # EMPTY_TUPLE
def _empty_tuple(m: Machine, pos: int) -> int:
    m.stack.append(())
    return pos


@_on(0x85)  # TUPLE1
def _tuple1(m: Machine, pos: int) -> int:
    m.stack[-1] = m.once((m.stack[-1],))
    return pos


@_on(0x86)  # TUPLE2
def _tuple2(m: Machine, pos: int) -> int:
    last = m.stack.pop()
    m.stack[-1] = m.once((m.stack[-1], last))
    return pos


@_on(0x87)  # TUPLE3
def _tuple3(m: Machine, pos: int) -> int:
    third, second = m.stack.pop(), m.stack.pop()
    m.stack[-1] = m.once((m.stack[-1], second, third))
    return pos


@_on(0x5D)  # EMPTY_LIST
def _empty_list(m: Machine, pos: int) -> int:
    m.stack.append([])
    return pos


@_on(0x6C)  # LIST
def _list(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    m.stack.append(items)
    return pos


@_on(0x7D)  # EMPTY_DICT
def _empty_dict(m: Machine, pos: int) -> int:
    m.stack.append({})
    return pos


@_on(0x64)  # DICT
def _dict(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    m.stack.append({})
    _set_items(m.stack[-1], items)
    return pos


@_on(0x8F)  # EMPTY_SET
def _empty_set(m: Machine, pos: int) -> int:
    m.stack.append(Elements([]))
    return pos


@_on(0x91)  # FROZENSET
def _frozenset(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    m.stack.append(Elements([checked_key(item) for item in items]))
    return pos


@_on(0x61)  # APPEND
def _append(m: Machine, pos: int) -> int:
    item = m.stack.pop()
    _extend(m.stack[-1], [item])
    return pos


@_on(0x65)  # APPENDS
def _appends(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    _extend(m.stack[-1], items)
    return pos


@_on(0x73)  # SETITEM
def _setitem(m: Machine, pos: int) -> int:
    value, key = m.stack.pop(), m.stack.pop()
    _set_items(m.stack[-1], [key, value])
    return pos


@_on(0x75)  # SETITEMS
def _setitems(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    _set_items(m.stack[-1], items)
    return pos


@_on(0x90)  # ADDITEMS
def _additems(m: Machine, pos: int) -> int:
    items = m.pop_mark()
    target = m.stack[-1]
    if type(target) is Elements:
        target.items.extend(checked_key(item) for item in items)
    else:
        _extend(target, items)
    return pos


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is list:
        target.extend(items)
    elif type(target) is Opaque:
        if target.items is None:
            target.items = []
        target.items.extend(items)
    else:
        raise PickleError(f"items are appended to a {type(target).__name__}")


def _set_items(target: Any, items: list[Any]) -> None:
    if type(target) is Opaque:
        if target.pairs is None:
            target.pairs = {}
        target = target.pairs
    elif type(target) is not dict and type(target) is not Ordered:
        raise PickleError(f"items are set in a {type(target).__name__}")
    if len(items) % 2:
        raise PickleError("a key has no value")
    for index in range(0, len(items), 2):
        key = items[index]
        target[key if type(key) is str else checked_key(key)] = items[index + 1]


# -- names, calls and objects ---------------------------------------------------------


@_on(0x63)  # GLOBAL
def _global(m: Machine, pos: int) -> int:
    module, pos = m.line(pos)
    name, pos = m.line(pos)
    m.stack.append(m.use(module.decode(), name.decode()))
    return pos


@_on(0x93)  # STACK_GLOBAL
def _stack_global(m: Machine, pos: int) -> int:
    name, module = m.stack.pop(), m.stack.pop()
    known = type(name) is str and type(module) is str
    m.stack.append(m.use(module, name) if known else m.use_computed(module, name))
    return pos


@_on(0x82)  # EXT1
def _ext1(m: Machine, pos: int) -> int:
    return _extension(m, m.data[pos], pos + 1)


@_on(0x83)  # EXT2
def _ext2(m: Machine, pos: int) -> int:
    return _extension(m, _UINT16.unpack_from(m.data, pos)[0], pos + 2)


@_on(0x84)  # EXT4
def _ext4(m: Machine, pos: int) -> int:
    return _extension(m, _INT32.unpack_from(m.data, pos)[0], pos + 4)


def _extension(m: Machine, code: int, end: int) -> int:
    # copyreg maps the code to a name in the loading process: it can be any name.
    m.stack.append(m.use_computed("copyreg", f"<extension {code}>"))
    return end


@_on(0x52)  # REDUCE
def _reduce(m: Machine, pos: int) -> int:
    args = m.stack.pop()
    m.stack[-1] = m.call(m.stack[-1], args)
    return pos


@_on(0x81)  # NEWOBJ
def _newobj(m: Machine, pos: int) -> int:
    args = m.stack.pop()
    m.stack[-1] = m.call(m.stack[-1], args)
    return pos


@_on(0x92)  # NEWOBJ_EX
def _newobj_ex(m: Machine, pos: int) -> int:
    kwargs, args = m.stack.pop(), m.stack.pop()
    made = m.call(m.stack[-1], args)
    if type(made) is Opaque:
        made.kwargs = kwargs
    m.stack[-1] = made
    return pos


@_on(0x69)  # INST
def _inst(m: Machine, pos: int) -> int:
    args = tuple(m.pop_mark())
    module, pos = m.line(pos)
    name, pos = m.line(pos)
    m.stack.append(m.call(m.use(module.decode(), name.decode()), args))
    return pos


@_on(0x6F)  # OBJ
def _obj(m: Machine, pos: int) -> int:
    func, *args = m.pop_mark()
    m.stack.append(m.call(func, tuple(args)))
    return pos


@_on(0x62)  # BUILD
def _build(m: Machine, pos: int) -> int:
    state = m.stack.pop()
    target = m.stack[-1]
    if type(target) is not Opaque and type(target) is not Ordered:
        raise PickleError(f"BUILD gives a state to a {type(target).__name__}")
    if target.state is not None:
        # No pickler does this: the first BUILD could set a method that the second one calls.
        raise PickleError("BUILD gives a state to an object that has one")
    target.state = state
    return pos


@_on(0x51)  # BINPERSID
def _binpersid(m: Machine, pos: int) -> int:
    node = Persistent(m.stack[-1])
    m.persistent.append(node)
    m.stack[-1] = _class_with_source(node.id) or node
    return pos


def _class_with_source(id_: object) -> Global | None:
    """Return the class in ("module", class, file, source) of torch before 1.6, or None."""
    if type(id_) is not tuple or not id_:
        return None
    cls = id_[1] if id_[0] == "module" and len(id_) > 1 else id_[0]
    return cls if type(cls) is Global else None


@_on(0x50)  # PERSID
def _persid(m: Machine, pos: int) -> int:
    line, pos = m.line(pos)
    m.stack.append(Persistent(line.decode("latin-1")))
    m.persistent.append(m.stack[-1])
    return pos


# -- the stream -----------------------------------------------------------------------


@_on(0x80)  # PROTO
def _proto(m: Machine, pos: int) -> int:
    m.protocol = m.data[pos]
    if m.protocol > 5:
        raise PickleError(f"pickle protocol {m.protocol} is not known")
    return pos + 1


@_on(0x95)  # FRAME
def _frame(m: Machine, pos: int) -> int:
    if m.framed:
        raise PickleError("a frame opens inside another frame")
    nbytes = _UINT64.unpack_from(m.data, pos)[0]
    if nbytes > m.limit - pos - 8:
        raise StarvedError(f"a frame claims {nbytes} bytes and {m.limit - pos - 8} are left")
    if nbytes:
        m.limit, m.framed = pos + 8 + nbytes, True
    return pos + 8


@_on(0x97)  # NEXT_BUFFER
def _next_buffer(_m: Machine, _pos: int) -> int:
    raise PickleError("it needs a buffer that is not in the file")


@_on(0x98)  # READONLY_BUFFER
def _readonly_buffer(m: Machine, pos: int) -> int:
    if type(m.stack[-1]) is not bytes:
        raise PickleError(f"a {type(m.stack[-1]).__name__} is marked as a buffer")
    return pos


@_on(0x2E)  # STOP
def _stop(m: Machine, pos: int) -> int:
    if m.framed and m.limit != pos:
        raise PickleError("a frame goes on after the end of its pickle")
    raise Stop(m.stack.pop(), pos)


def _unknown(m: Machine, pos: int) -> int:
    raise PickleError(f"{m.data[pos - 1]:#04x} is no opcode")


_ALL: Final = ATOMS | _TABLE
HANDLERS: Final = tuple(_ALL.get(opcode, _unknown) for opcode in range(256))
"""Handlers by opcode; the six most frequent opcodes are inlined in `reader._run_slice`."""

"""Handlers of the opcodes for stack, memo, containers, globals, calls and frames."""

from functools import partial
from struct import Struct
from typing import Any, Final

from ckptool.formats.pickle.machine import (
    MAX_UNCOUNTED_KEY_CHARS,
    OpcodeHandler,
    PickleMachine,
    PickleStop,
    register_handler,
)
from ckptool.formats.pickle.nodes import (
    BrokenPickleError,
    GlobalName,
    MappingNode,
    PersistentReference,
    PickleError,
    SetNode,
    TruncatedPickleError,
    UnresolvedObject,
    require_hashable_key,
)
from ckptool.formats.pickle.numpy_arrays import is_joblib_wrapper, read_joblib_array
from ckptool.formats.pickle.safe_calls import PLAIN_DATA_CALLS
from ckptool.formats.pickle.tensor_calls import run_tensor_calls
from ckptool.formats.pickle.value_opcodes import VALUE_HANDLERS, parse_decimal

_UINT16, _UINT32, _UINT64, _INT32 = Struct("<H"), Struct("<I"), Struct("<Q"), Struct("<i")

_OBJECT_HANDLERS: Final[dict[int, OpcodeHandler]] = {}
_opcode = partial(register_handler, _OBJECT_HANDLERS)


# -- the memo -------------------------------------------------------------------------


@_opcode(0x71)  # BINPUT
def _load_binput(m: PickleMachine, pos: int) -> int:
    m.memo.put(m.data[pos], m.stack[-1])
    return pos + 1


@_opcode(0x94)  # MEMOIZE
def _load_memoize(m: PickleMachine, pos: int) -> int:
    m.memo.put(len(m.memo), m.stack[-1])
    return pos


@_opcode(0x70)  # PUT
def _load_put(m: PickleMachine, pos: int) -> int:
    line, pos = m.read_line(pos)
    m.memo.put(_parse_slot(line), m.stack[-1])
    return pos


@_opcode(0x67)  # GET
def _load_get(m: PickleMachine, pos: int) -> int:
    line, pos = m.read_line(pos)
    m.stack.append(m.memo.get(_parse_slot(line)))
    return pos


@_opcode(0x6A)  # LONG_BINGET
def _load_long_binget(m: PickleMachine, pos: int) -> int:
    node = m.memo.get(_UINT32.unpack_from(m.data, pos)[0])
    m.stack.append(node)
    return run_tensor_calls(m, pos + 4) if node is m.tensor_callee else pos + 4


def _parse_slot(line: bytes) -> int:
    slot = parse_decimal(line)
    if not 0 <= slot < 1 << 32:
        raise PickleError("a memo slot beyond 32 bits")
    return slot


# -- the stack ------------------------------------------------------------------------


@_opcode(0x30)  # POP
def _load_pop(m: PickleMachine, pos: int) -> int:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()
    return pos


@_opcode(0x31)  # POP_MARK
def _load_pop_mark(m: PickleMachine, pos: int) -> int:
    m.pop_mark()
    return pos


@_opcode(0x32)  # DUP
def _load_dup(m: PickleMachine, pos: int) -> int:
    m.stack.append(m.stack[-1])
    return pos


# -- containers -----------------------------------------------------------------------


@_opcode(0x29)  # EMPTY_TUPLE
def _load_empty_tuple(m: PickleMachine, pos: int) -> int:
    m.stack.append(())
    return pos


@_opcode(0x85)  # TUPLE1
def _load_tuple1(m: PickleMachine, pos: int) -> int:
    m.stack[-1] = m.intern_tuple((m.stack[-1],))
    return pos


@_opcode(0x86)  # TUPLE2
def _load_tuple2(m: PickleMachine, pos: int) -> int:
    last = m.stack.pop()
    m.stack[-1] = m.intern_tuple((m.stack[-1], last))
    return pos


@_opcode(0x87)  # TUPLE3
def _load_tuple3(m: PickleMachine, pos: int) -> int:
    third, second = m.stack.pop(), m.stack.pop()
    m.stack[-1] = m.intern_tuple((m.stack[-1], second, third))
    return pos


@_opcode(0x5D)  # EMPTY_LIST
def _load_empty_list(m: PickleMachine, pos: int) -> int:
    m.stack.append([])
    return pos


@_opcode(0x6C)  # LIST
def _load_list(m: PickleMachine, pos: int) -> int:
    items = m.pop_mark()
    m.stack.append(items)
    return pos


@_opcode(0x7D)  # EMPTY_DICT
def _load_empty_dict(m: PickleMachine, pos: int) -> int:
    m.stack.append({})
    return pos


@_opcode(0x64)  # DICT
def _load_dict(m: PickleMachine, pos: int) -> int:
    items = m.pop_mark()
    m.stack.append({})
    _set_items(m, m.stack[-1], items)
    return pos


@_opcode(0x8F)  # EMPTY_SET
def _load_empty_set(m: PickleMachine, pos: int) -> int:
    m.stack.append(SetNode([]))
    return pos


@_opcode(0x91)  # FROZENSET
def _load_frozenset(m: PickleMachine, pos: int) -> int:
    items = m.pop_mark()
    m.stack.append(SetNode([require_hashable_key(item) for item in items], is_frozen=True))
    return pos


@_opcode(0x61)  # APPEND
def _load_append(m: PickleMachine, pos: int) -> int:
    item = m.stack.pop()
    m.note_item_target(m.stack[-1])
    _append_items(m.stack[-1], [item])
    return pos


@_opcode(0x65)  # APPENDS
def _load_appends(m: PickleMachine, pos: int) -> int:
    items = m.pop_mark()
    m.note_item_target(m.stack[-1])
    _append_items(m.stack[-1], items)
    return pos


@_opcode(0x73)  # SETITEM
def _load_setitem(m: PickleMachine, pos: int) -> int:
    value, key = m.stack.pop(), m.stack.pop()
    _set_items(m, m.stack[-1], [key, value])
    return pos


@_opcode(0x75)  # SETITEMS
def _load_setitems(m: PickleMachine, pos: int) -> int:
    items = m.pop_mark()
    _set_items(m, m.stack[-1], items)
    return pos


@_opcode(0x90)  # ADDITEMS
def _load_additems(m: PickleMachine, pos: int) -> int:
    items = m.pop_mark()
    target = m.stack[-1]
    if type(target) is SetNode and not target.is_frozen:
        target.items.extend(require_hashable_key(item) for item in items)
    else:
        _append_items(target, items)
    return pos


def _append_items(target: Any, items: list[Any]) -> None:
    if type(target) is list:
        target.extend(items)
    elif type(target) is UnresolvedObject:
        if target.items is None:
            target.items = []
        target.items.extend(items)
    else:
        raise PickleError(f"items are appended to a {type(target).__name__}")


def _set_items(m: PickleMachine, target: Any, items: list[Any]) -> None:
    if type(target) is UnresolvedObject:
        m.note_item_target(target)
        if target.pairs is None:
            target.pairs = {}
        target = target.pairs
    elif type(target) is not dict and type(target) is not MappingNode:
        raise PickleError(f"items are set in a {type(target).__name__}")
    if len(items) % 2:
        raise PickleError("a key has no value")
    keys = items[::2]
    for key in keys:
        if type(key) is not str or len(key) > MAX_UNCOUNTED_KEY_CHARS:
            m.check_key(target, key)
    target.update(zip(keys, items[1::2], strict=True))


# -- names, calls and objects ---------------------------------------------------------


@_opcode(0x63)  # GLOBAL
def _load_global(m: PickleMachine, pos: int) -> int:
    module, pos = m.read_line(pos)
    name, pos = m.read_line(pos)
    m.stack.append(m.record_global(module.decode(), name.decode()))
    return pos


@_opcode(0x93)  # STACK_GLOBAL
def _load_stack_global(m: PickleMachine, pos: int) -> int:
    name, module = m.stack.pop(), m.stack.pop()
    m.is_no_text = True
    is_static = type(name) is str and type(module) is str
    m.stack.append(
        m.record_global(module, name) if is_static else m.record_computed_global(module, name)
    )
    return pos


@_opcode(0x82)  # EXT1
def _load_ext1(m: PickleMachine, pos: int) -> int:
    return _push_extension(m, m.data[pos], pos + 1)


@_opcode(0x83)  # EXT2
def _load_ext2(m: PickleMachine, pos: int) -> int:
    return _push_extension(m, _UINT16.unpack_from(m.data, pos)[0], pos + 2)


@_opcode(0x84)  # EXT4
def _load_ext4(m: PickleMachine, pos: int) -> int:
    return _push_extension(m, _INT32.unpack_from(m.data, pos)[0], pos + 4)


def _push_extension(m: PickleMachine, code: int, end: int) -> int:
    # copyreg maps the code to a name in the loading process: it can be any name. Bytes that begin
    # with the opcode and go on as no pickle does are data, as one digest in 85 does.
    m.stack.append(m.record_computed_global("copyreg", f"<extension {code}>"))
    return end


@_opcode(0x52)  # REDUCE
def _load_reduce(m: PickleMachine, pos: int) -> int:
    args = m.stack.pop()
    m.stack[-1] = m.record_call(m.stack[-1], args)
    return pos


@_opcode(0x81)  # NEWOBJ
def _load_newobj(m: PickleMachine, pos: int) -> int:
    args = m.stack.pop()
    m.stack[-1] = m.record_creation(m.stack[-1], args)
    return pos


@_opcode(0x92)  # NEWOBJ_EX
def _load_newobj_ex(m: PickleMachine, pos: int) -> int:
    kwargs, args = m.stack.pop(), m.stack.pop()
    node = m.record_creation(m.stack[-1], args)
    if type(node) is UnresolvedObject:
        node.kwargs = kwargs
    m.stack[-1] = node
    return pos


@_opcode(0x69)  # INST
def _load_inst(m: PickleMachine, pos: int) -> int:
    args = tuple(m.pop_mark())
    module, pos = m.read_line(pos)
    name, pos = m.read_line(pos)
    m.stack.append(m.record_call(m.record_global(module.decode(), name.decode()), args))
    return pos


@_opcode(0x6F)  # OBJ
def _load_obj(m: PickleMachine, pos: int) -> int:
    func, *args = m.pop_mark()
    m.stack.append(m.record_call(func, tuple(args)))
    return pos


@_opcode(0x62)  # BUILD
def _load_build(m: PickleMachine, pos: int) -> int:
    state = m.stack.pop()
    target = m.stack[-1]
    m.is_no_text = True
    if type(target) is not UnresolvedObject and type(target) is not MappingNode:
        raise PickleError(f"BUILD gives a state to a {type(target).__name__}")
    if target.state is not None:
        # No pickler does this: the first BUILD could set a method that the second one calls.
        raise PickleError("BUILD gives a state to an object that has one")
    if type(target) is UnresolvedObject and is_joblib_wrapper(target):
        return read_joblib_array(m, target, state, pos)
    if type(target) is UnresolvedObject and target.callee_name in PLAIN_DATA_CALLS:
        m.note_refusal(f"it gives a state to a {target.qualified_name}")
    target.state = state
    return pos


@_opcode(0x51)  # BINPERSID
def _load_binpersid(m: PickleMachine, pos: int) -> int:
    node = PersistentReference(m.stack[-1])
    m.persistent_references.append(node)
    m.stack[-1] = _get_legacy_class(node.persistent_id) or node
    return pos


def _get_legacy_class(id_: object) -> GlobalName | None:
    """Return the class in ("module", class, file, source) of torch before 1.6, or None."""
    if type(id_) is not tuple or not id_:
        return None
    cls = id_[1] if id_[0] == "module" and len(id_) > 1 else id_[0]
    return cls if type(cls) is GlobalName else None


@_opcode(0x50)  # PERSID
def _load_persid(m: PickleMachine, pos: int) -> int:
    line, pos = m.read_line(pos)
    m.stack.append(PersistentReference(line.decode("latin-1")))
    m.persistent_references.append(m.stack[-1])
    return pos


# -- the stream -----------------------------------------------------------------------


@_opcode(0x80)  # PROTO
def _load_proto(m: PickleMachine, pos: int) -> int:
    m.protocol = m.data[pos]
    if m.protocol > 5:
        raise BrokenPickleError(f"pickle protocol {m.protocol} is not known")
    return pos + 1


@_opcode(0x95)  # FRAME
def _load_frame(m: PickleMachine, pos: int) -> int:
    if m.in_frame:
        raise PickleError("a frame begins inside another frame")
    nbytes = _UINT64.unpack_from(m.data, pos)[0]
    if nbytes > m.frame_end - pos - 8:
        raise TruncatedPickleError(
            f"a frame claims {nbytes} bytes but {m.frame_end - pos - 8} are left"
        )
    if nbytes:
        m.frame_end, m.in_frame = pos + 8 + nbytes, True
    return pos + 8


@_opcode(0x97)  # NEXT_BUFFER
def _load_next_buffer(_m: PickleMachine, _pos: int) -> int:
    raise PickleError("it needs a buffer that is not in the file")


@_opcode(0x98)  # READONLY_BUFFER
def _load_readonly_buffer(m: PickleMachine, pos: int) -> int:
    if not isinstance(m.stack[-1], bytes):
        raise PickleError(f"a {type(m.stack[-1]).__name__} is marked as a buffer")
    return pos


@_opcode(0x2E)  # STOP
def _load_stop(m: PickleMachine, pos: int) -> int:
    if m.in_frame and m.frame_end != pos:
        raise PickleError("a frame goes on after the end of its pickle")
    raise PickleStop(m.stack.pop(), pos)


def _reject_opcode(m: PickleMachine, pos: int) -> int:
    raise BrokenPickleError(f"{m.data[pos - 1]:#04x} is not an opcode")


def _build_handler(opcode: int) -> OpcodeHandler:
    """Return the handler of an opcode; it notes an opcode that weights_only=True refuses."""
    handler = (VALUE_HANDLERS | _OBJECT_HANDLERS).get(opcode, _reject_opcode)
    if opcode in WEIGHTS_ONLY_OPCODES:
        return handler

    def note_and_handle(m: PickleMachine, pos: int) -> int:
        if not m.refusal:
            m.note_refusal(f"it uses the opcode {_name_opcode(opcode)}")
        return handler(m, pos)

    return note_and_handle


def _name_opcode(opcode: int) -> str:
    """Return the name of an opcode in pickletools; "0xff" for what is none."""
    from pickletools import opcodes

    return next((info.name for info in opcodes if info.code == chr(opcode)), f"{opcode:#04x}")


WEIGHTS_ONLY_OPCODES: Final = frozenset(
    b"c\x81Rbaesu(t\x85\x86\x87N\x89\x88)]}\x8fJKMGXUQhjqr\x8a\x80."
)
"""Opcodes that `torch.load(weights_only=True)` runs, since torch 2.6; a test asks torch."""
HANDLERS: Final = tuple(_build_handler(opcode) for opcode in range(256))
"""Handlers by opcode; the five most frequent opcodes are inlined in `reader._run_slice`."""

"""Opcodes that torch.save writes for a tensor -> the objects that they make, in one step.

Of the opcodes of a state_dict nine in ten are those of `_rebuild_tensor_v2(storage, offset, size,
stride, requires_grad, hooks)`: about 30 for each tensor. A pattern recognises them, and its match
is the layout of a call, by which the same bytes with another key and other memo slots are
recognised again. What differs in any byte is left to the machine; stack, memo and nodes are the
same.
"""

import re
from struct import Struct
from typing import Any, Final

from msgspec import Struct as Record

from ckptool.formats.pickle.machine import PickleMachine
from ckptool.formats.pickle.nodes import (
    GlobalName,
    PersistentReference,
    TensorCall,
    UnresolvedObject,
)
from ckptool.formats.pickle.safe_calls import SAFE_CALL_BUILDERS

_INT: Final = rb"K.|M..|J...."
_INTS: Final = rb"\)|(?:" + _INT + rb"){1,3}[\x85-\x87]|\((?:" + _INT + rb"){4,64}t"
"""A size or a stride: EMPTY_TUPLE, ints and TUPLE1 to TUPLE3, or MARK, ints and TUPLE."""
_MEMOIZED: Final = rb"(h.|j....)"
_PUT: Final = rb"r(....)"
_TENSOR_CALL: Final = re.compile(
    rb"\(\(" + _MEMOIZED + _MEMOIZED +  # "storage" and the class of the storage
    rb"(?:X(.\0\0\0\d+)" + _PUT + rb"|" + _MEMOIZED + rb")"  # its key
    rb"(?:X(.\0\0\0[a-z0-9:]+)" + _PUT + rb"|" + _MEMOIZED + rb")"  # its location
    rb"(" + _INT + rb")(N?)t" + _PUT +  # its numel, and the view that torch before 1.6 wrote
    rb"Q(" + _INT + rb")"  # offset
    rb"(" + _INTS + rb")(?:" + _PUT + rb")?"  # size
    rb"(" + _INTS + rb")(?:" + _PUT + rb")?"  # stride
    rb"([\x88\x89])" + _MEMOIZED + rb"\)R" + _PUT +  # requires_grad, hooks
    rb"t" + _PUT + rb"R" + _PUT,
    re.DOTALL,
)  # fmt: skip
"""The first byte of each opcode says how long it is: bytes match in one way or in none."""
_SLOT_GROUPS: Final = (4, 7, 11, 14, 16, 19, 20, 21)
"""Groups of key, location, id of the storage, size, stride, hooks, arguments and call."""
_PART_GROUPS: Final = _SLOT_GROUPS[1:-1]
_INT_BYTES: Final = {ord("K"): 1, ord("M"): 2, ord("J"): 4}
"""Opcode of an int -> size of its operand."""
_TUPLE0: Final = 0x84
"""The opcode before TUPLE1."""
_UINT32: Final = Struct("<I").unpack_from
_BUILD_HOOKS: Final = SAFE_CALL_BUILDERS["collections", "OrderedDict"]
_LAST_SHORT_SLOT: Final = 0xFF
"""The last slot of BINPUT and BINGET, which torch.save writes for the first ones."""
_HEAD_BYTES: Final = 7
"""Bytes before the size of a storage's key, if "storage" and the class take a BINGET each."""
_MAX_CALLS: Final = 1000
"""Calls that are run without a check of the machine's limits."""
_MAX_LAYOUTS: Final = 1024
_MAX_LAYOUTS_ALIKE: Final = 8
"""Layouts that are tried for one call: shapes of equally many elements."""


class CallLayout(Record):
    """The bytes of calls that differ in the storage's key and in memo slots alone."""

    nbytes: int
    """From the end of the key to the end of the call."""
    number: int
    """These bytes as a little-endian number, if its first memo slot is 0."""
    step: int
    """What is added to the number if each slot is greater by 1."""
    call: TensorCall
    """What the bytes mean."""


def run_tensor_calls(m: PickleMachine, pos: int) -> int:
    """Run the call of `_rebuild_tensor_v2`, which is on top of the stack, if it goes on at `pos`.

    Keys and calls that follow it, as they do in a dict, are run as well.

    Returns:
        The position after them, or `pos` if other opcodes are there: nothing was done then.
    """
    if m.memo.sparse_slots or m.memo.is_rewritten or len(m.memo.slots) <= _LAST_SHORT_SLOT:
        return pos
    data, slots, stack, callee = m.data, m.memo.slots, m.stack, m.tensor_callee
    frame_end, layouts, references = m.frame_end, m.call_layouts, m.persistent_references
    for _ in range(_MAX_CALLS):
        start = pos + _HEAD_BYTES + 4
        if start > frame_end:
            return pos
        key_end: int = start + _UINT32(data, pos + _HEAD_BYTES)[0]
        index = data[pos : pos + _HEAD_BYTES] + data[key_end + 5 : key_end + 11]
        for layout in layouts.get(index, ()):
            end = key_end + layout.nbytes
            number = layout.number + len(slots) * layout.step
            if int.from_bytes(data[key_end:end], "little") == number and end <= frame_end:
                key = str(data[start:key_end], "utf-8", "surrogatepass")
                slots.append(key)
                break
        else:
            matched_call = _match_call(m, pos, index)
            if matched_call is None:
                return pos
            key, layout, end = matched_call
        call = layout.call
        storage = PersistentReference(key, None, call)
        tensor = stack[-1] = UnresolvedObject(callee, storage)
        references.append(storage)
        slots += (*(storage,) * call.part_count, tensor)
        m.is_no_text = True
        pos = _find_next_call(m, end)
        if pos == end:
            return end
        key = str(data[end + 5 : pos - 7], "utf-8", "surrogatepass")
        slots.append(key)
        stack += (key, callee)
    return pos


def _find_next_call(m: PickleMachine, pos: int) -> int:
    """Return the position after a key and the callee, if they are at `pos`; else `pos`."""
    data, slots = m.data, m.memo.slots
    if pos + 5 >= m.frame_end or data[pos] != 0x58:  # BINUNICODE
        return pos
    key_end: int = pos + 5 + _UINT32(data, pos + 1)[0]
    is_call = (
        key_end + 7 < m.frame_end
        and data[key_end] == 0x72  # LONG_BINPUT
        and data[key_end + 5] == 0x68  # BINGET
        and _UINT32(data, key_end + 1)[0] == len(slots) > data[key_end + 6]
        and slots[data[key_end + 6]] is m.tensor_callee
    )
    return key_end + 7 if is_call else pos


def _match_call(m: PickleMachine, pos: int, index: bytes) -> tuple[Any, CallLayout, int] | None:
    """Return the key of the storage, the layout and the end of a call; keep the layout at `index`.

    The key is put into the memo, where it is new. None if no call that torch.save writes is there.
    """
    slots = m.memo.slots
    match = _TENSOR_CALL.match(m.data, pos, m.frame_end)
    if match is None or not _has_consecutive_slots(match, len(slots)):
        return None
    try:
        key, layout = _read_call(m, match)
    except LookupError:
        return None
    if match.start(3) == pos + _HEAD_BYTES and len(m.call_layouts) < _MAX_LAYOUTS:
        alike = m.call_layouts.setdefault(index, [])
        del alike[_MAX_LAYOUTS_ALIKE - 1 :]
        alike.insert(0, layout)
    if match[4]:
        slots.append(key)
    return key, layout, match.end()


def _has_consecutive_slots(match: re.Match[bytes], first_slot: int) -> bool:
    """Whether the memo slots follow those that are filled."""
    slots = [slot for group in _SLOT_GROUPS if (slot := match[group])]
    return all(_UINT32(slot)[0] == number for number, slot in enumerate(slots, first_slot))


def _read_call(m: PickleMachine, match: re.Match[bytes]) -> tuple[Any, CallLayout]:
    """Return the key of the storage, and the layout of the call.

    Raises:
        LookupError: the machine has to run it: an operand is none that torch.save writes.
    """
    kind, hooks_class = _get_object(m, match[1]), _get_object(m, match[18])
    if kind != "storage" or type(hooks_class) is not GlobalName:
        raise LookupError
    if hooks_class.builder is not _BUILD_HOOKS:
        raise LookupError
    key = _read_text(match[3]) if match[3] else _get_object(m, match[5])
    location = _read_text(match[6]) if match[6] else _get_object(m, match[8])
    numel, offset, size, stride = (_read_numbers(m, match[group]) for group in (9, 12, 13, 15))
    start = match.end(3 if match[3] else 5)
    step = sum(1 << 8 * (match.start(group) - start) for group in _SLOT_GROUPS if match[group])
    number = int.from_bytes(m.data[start : match.end()], "little")
    return key, CallLayout(
        match.end() - start,
        number - len(m.memo.slots) * step,
        step,
        TensorCall(
            (kind, _get_object(m, match[2])),
            (location, numel, None) if match[10] else (location, numel),
            (offset, size, stride),
            match[17] == b"\x88",
            (location,) if match[7] else (),
            (*((size,) if match[14] else ()), *((stride,) if match[16] else ())),
            part_count=sum(match[group] is not None for group in _PART_GROUPS),
        ),
    )


def _get_object(m: PickleMachine, reference: bytes) -> Any:
    """Return what BINGET or LONG_BINGET pushes.

    Raises:
        KeyError: the slot is empty before the call begins.
    """
    return m.memo.get(reference[1] if len(reference) == 2 else _UINT32(reference, 1)[0])


def _read_text(counted_text: bytes) -> str:
    """Return the text of BINUNICODE, of whose size only the first byte is not 0.

    Raises:
        LookupError: the text has another size.
    """
    if counted_text[0] != len(counted_text) - 4:
        raise LookupError
    return str(counted_text[4:], "ascii")


def _read_numbers(m: PickleMachine, text: bytes) -> Any:
    """Return the int or the tuple of ints that the opcodes push.

    Raises:
        LookupError: TUPLE1 to TUPLE3 follow another number of ints.
    """
    ints, pos = [], int(text.startswith(b"("))
    while pos < len(text) and (nbytes := _INT_BYTES.get(text[pos], 0)):
        operand = text[pos + 1 : pos + 1 + nbytes]
        ints.append(int.from_bytes(operand, "little", signed=nbytes == 4))
        pos += 1 + nbytes
    tuple_opcode = text[pos:]
    if not tuple_opcode:
        return ints[0]
    if tuple_opcode not in {b")", b"t"} and tuple_opcode[0] - _TUPLE0 != len(ints):
        raise LookupError
    return m.intern_tuple(tuple(ints))

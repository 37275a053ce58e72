"""Opcodes that torch.save writes for a tensor -> the objects that they make, in one step.

Of the opcodes of a state_dict nine in ten are those of `_rebuild_tensor_v2(storage, offset, size,
stride, requires_grad, hooks)`: about 30 for each tensor. A pattern recognises them, and what differs
from it in any byte is left to the machine, opcode by opcode: stack, memo and nodes are the same.
"""

import re
from struct import Struct
from typing import Any, Final

from ckptool.formats.pickle.machine import PickleMachine
from ckptool.formats.pickle.nodes import (
    GlobalName,
    MappingNode,
    PersistentReference,
    UnresolvedObject,
)
from ckptool.formats.pickle.safe_calls import SAFE_CALL_BUILDERS

_INT: Final = rb"K.|M..|J...."
_INTS: Final = rb"\)|(?:" + _INT + rb"){1,3}[\x85-\x87]|\((?:" + _INT + rb"){4,64}t"
"""A size or a stride: EMPTY_TUPLE, ints and TUPLE1 to TUPLE3, or MARK, ints and TUPLE."""
_MEMOIZED: Final = rb"(?:h.|j....)"
_PUT: Final = rb"r(....)"
_TENSOR_CALL: Final = re.compile(
    rb"\(\((" + _MEMOIZED + rb")(" + _MEMOIZED + rb")"  # "storage", class of the storage
    rb"(?:X(.\0\0\0\d+)" + _PUT + rb"|(" + _MEMOIZED + rb"))"  # its key
    rb"(?:X(.\0\0\0[a-z0-9:]+)" + _PUT + rb"|(" + _MEMOIZED + rb"))"  # its location
    rb"(" + _INT + rb")(N?)t" + _PUT +  # its numel, and the view that torch before 1.6 wrote
    rb"Q(" + _INT + rb")"  # offset
    rb"(" + _INTS + rb")(?:" + _PUT + rb")?"  # size
    rb"(" + _INTS + rb")(?:" + _PUT + rb")?"  # stride
    rb"([\x88\x89])(" + _MEMOIZED + rb")\)R" + _PUT +  # requires_grad, hooks
    rb"t" + _PUT + rb"R" + _PUT,
    re.DOTALL,
)  # fmt: skip
"""The first byte of each opcode says how long it is: bytes match in one way or in none."""
_INT_BYTES: Final = {ord("K"): 1, ord("M"): 2, ord("J"): 4}
"""Opcode of an int -> size of its operand."""
_UINT32: Final = Struct("<I").unpack_from
_SLOT_PACKERS: Final = tuple(Struct(f"<{count}I").pack for count in range(9))
_BUILD_HOOKS: Final = SAFE_CALL_BUILDERS["collections", "OrderedDict"]
_TUPLE0: Final = 0x84
"""The opcode before TUPLE1."""
_MAX_CACHED_NUMBERS: Final = 4096


def run_tensor_call(m: PickleMachine, pos: int) -> int:
    """Run the call of `_rebuild_tensor_v2`, which is on top of the stack, if it goes on at `pos`.

    Returns:
        The position after the call, or `pos` if other opcodes are there: nothing was done then.
    """
    match = _TENSOR_CALL.match(m.data, pos, m.frame_end)
    if match is None or m.memo.sparse_slots:
        return pos
    (
        kind, cls, key, key_slot, old_key, place, place_slot, old_place, numel, view, id_slot,
        offset, size, size_slot, stride, stride_slot, grad, hooks, hooks_slot, args_slot, call_slot,
    ) = match.groups(b"")  # fmt: skip
    slots = m.memo.slots
    put = key_slot + place_slot + id_slot + size_slot + stride_slot + hooks_slot + args_slot
    put += call_slot
    first, count = len(slots), len(put) // 4
    if put != _SLOT_PACKERS[count](*range(first, first + count)):
        return pos
    try:
        storage_id = (
            _get_object(slots, kind),
            _get_object(slots, cls),
            _read_text(key) if key_slot else _get_object(slots, old_key),
            _read_text(place) if place_slot else _get_object(slots, old_place),
            _read_numbers(m, numel),
        )
        hooks_class = _get_object(slots, hooks)
        offset, size, stride = (
            _read_numbers(m, offset), _read_numbers(m, size), _read_numbers(m, stride)
        )  # fmt: skip
    except LookupError:
        return pos
    if storage_id[0] != "storage" or type(hooks_class) is not GlobalName:
        return pos
    if hooks_class.builder is not _BUILD_HOOKS:
        return pos
    if view:
        storage_id += (None,)
    storage, hooks = PersistentReference(storage_id), MappingNode()
    args = (storage, offset, size, stride, grad == b"\x88", hooks)
    call = UnresolvedObject(m.stack[-1], args)
    m.stack[-1] = call
    m.persistent_references.append(storage)
    m.is_no_text = True
    if key_slot:
        slots.append(storage_id[2])
    if place_slot:
        slots.append(storage_id[3])
    slots.append(storage_id)
    if size_slot:
        slots.append(size)
    if stride_slot:
        slots.append(stride)
    slots += (hooks, args, call)
    return match.end()


def _get_object(slots: list[Any], reference: bytes) -> Any:
    """Return what BINGET or LONG_BINGET pushes.

    Raises:
        IndexError: the slot is empty before the call begins.
    """
    return slots[reference[1] if len(reference) == 2 else _UINT32(reference, 1)[0]]


def _read_text(counted_text: bytes) -> str:
    """Return the text of BINUNICODE, of which only the first byte of the size is not 0.

    Raises:
        LookupError: the text has another size.
    """
    if counted_text[0] != len(counted_text) - 4:
        raise LookupError
    return str(counted_text[4:], "ascii")


def _read_numbers(m: PickleMachine, text: bytes) -> Any:
    """Return the int or the tuple of ints that the opcodes make; one object for equal opcodes.

    Raises:
        LookupError: TUPLE1 to TUPLE3 follow another number of ints.
    """
    numbers = m.parsed_numbers.get(text)
    if numbers is not None:
        return numbers
    ints, pos = [], int(text.startswith(b"("))
    while pos < len(text) and (nbytes := _INT_BYTES.get(text[pos], 0)):
        ints.append(
            int.from_bytes(text[pos + 1 : pos + 1 + nbytes], "little", signed=nbytes == 4)
        )
        pos += 1 + nbytes
    end = text[pos:]
    if end and end not in {b")", b"t"} and end[0] - _TUPLE0 != len(ints):
        raise LookupError
    numbers = m.intern_tuple(tuple(ints)) if end else ints[0]
    if len(m.parsed_numbers) < _MAX_CACHED_NUMBERS:
        m.parsed_numbers[text] = numbers
    return numbers

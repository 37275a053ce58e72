"""Pickle bytes -> ParsedPickle: an inert tree, and every name that loading it would import."""

import re
from itertools import repeat
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is an exception
from typing import Final

from msgspec import Struct as Record

from ckptool.formats.collector import paused_collector
from ckptool.formats.globals import judge
from ckptool.formats.limits import Limits
from ckptool.formats.machine import Machine, Stop
from ckptool.formats.nodes import Global, Persistent, PickleError, StarvedError
from ckptool.formats.opcodes import HANDLERS
from ckptool.model import Safety

__all__ = ["Pickle", "PickleError", "dangerous", "is_settled", "scan", "unpickle", "unpickle_all"]

_SLICE: Final = 1 << 16
"""Opcodes between two checks of the stack and memo sizes."""
_PILED: Final = 2_000_000
"""Objects on the stack: an unbatched tuple puts all its elements there."""
_UINT32: Final = Struct("<I").unpack_from
_EMBEDDED: Final = 4
"""Nesting of pickles in byte strings of pickles."""
_CONSECUTIVE: Final = 64
_AROUND: Final = 1 << 16
_IMPORT: Final = re.compile(rb"c([A-Za-z_][A-Za-z_0-9.]*)\n([A-Za-z_][A-Za-z_0-9.]*)\n")
_ASKS: Final = "an opcode asks for what is not on the stack, in the memo or in the stream"
_NO_OPCODES: Final = b"\xff" * 16
"""Longer than any fixed-size operand: with it appended, only stack or memo can lack an operand."""
_BROKEN: Final = (IndexError, KeyError, ValueError, OverflowError, StructError)
"""Exceptions of opcode handlers on a broken stream: empty stack, empty memo slot, bad number."""


class Pickle(Record):
    """One pickle, as far as it could be read."""

    root: object = None
    end: int = 0
    """Position after its STOP; 0 if reading stopped before."""
    fault: str = ""
    """Why reading stopped before STOP; "" if it did not."""
    starved: bool = False
    """Whether reading stopped at the end of the data: with more bytes it may be complete."""
    globals: list[Global] = []
    """Every name that it uses, in order of first use, also if the result is discarded."""
    persistent: list[Persistent] = []
    blobs: dict[int, int] = {}
    """id of a byte string in the tree -> its offset in the data."""


def unpickle(data: bytes, limits: Limits, start: int = 0) -> Pickle:
    """Return the pickle at `start`; a fault in the data is in its `error`, never raised."""
    machine = Machine(data, limits)
    pickle = Pickle(blobs=machine.blobs, persistent=machine.persistent)
    try:
        _run(machine, start)
    except Stop as stop:
        pickle.root, pickle.end = stop.value, stop.end
    except PickleError as fault:
        pickle.fault, pickle.starved = str(fault), isinstance(fault, StarvedError)
    except UnicodeError:
        pickle.fault, pickle.starved = "a string is not what its opcode says", True
    except _BROKEN as error:
        pickle.fault = _ASKS
        pickle.starved = isinstance(error, IndexError | StructError)
    if pickle.fault and machine.framed:
        _use_beyond_frame(machine)
    inner = [name for blob in machine.embedded.values() for name in scan(blob, limits, 0, 1)]
    pickle.globals = list(dict.fromkeys((*machine.globals.values(), *inner)))
    return pickle


def is_settled(data: bytes, limits: Limits) -> bool:
    """Whether the pickle at the start of `data` ends or is broken within `data`."""
    found = unpickle(data + _NO_OPCODES, limits)
    return not found.starved or found.fault == _ASKS


def unpickle_all(data: bytes, limits: Limits, start: int = 0) -> Pickle:
    """Return the pickle from `start` to the end of `data`; bytes after it are an error."""
    pickle = unpickle(data, limits, start)
    if not pickle.fault and pickle.end != len(data):
        pickle.fault = f"{len(data) - pickle.end} bytes follow the end of the pickle"
        pickle.globals += scan(data, limits, pickle.end)
    return pickle


def scan(data: bytes, limits: Limits, start: int = 0, depth: int = 0) -> list[Global]:
    """Return the names that the consecutive pickles from `start` on use, also embedded ones."""
    found: dict[str, Global] = {}
    for _ in range(_CONSECUTIVE):
        if start >= len(data):
            break
        machine = Machine(data, limits)
        try:
            _run(machine, start)
        except Stop as stop:
            start = stop.end
        except _BROKEN:
            start = len(data)
        blobs = list(machine.embedded.values()) if depth < _EMBEDDED else []
        inner = (name for blob in blobs for name in scan(blob, limits, 0, depth + 1))
        found.update({name.qualified: name for name in (*machine.globals.values(), *inner)})
    return list(found.values())


def dangerous(names: list[Global]) -> list[Global]:
    """Return those of `names` that are classified as dangerous."""
    return [name for name in names if judge(name) is Safety.DANGEROUS]


def _run(machine: Machine, start: int) -> None:
    """Run opcodes from `start` until one raises.

    Raises:
        PickleStop: the pickle is complete.
        PickleError: it contradicts the format, or exceeds a limit.
    """
    pos = start
    with paused_collector():
        for _ in range(machine.limits.opcodes // _SLICE + 1):
            pos = _run_slice(machine, pos)
            _check_piles(machine)
    raise PickleError(f"it has more than {machine.limits.opcodes} opcodes")


def _run_slice(machine: Machine, pos: int) -> int:
    """Run `_SLICE_OPCODES` opcodes; the six most frequent in a state_dict are inlined for speed."""
    data, handlers, memo, outer = machine.data, HANDLERS, machine.memo, machine.outer
    stack, limit, uint32 = machine.stack, machine.limit, _UINT32
    slots, others = memo.slots, memo.others
    for _ in repeat(None, _SLICE):
        opcode = data[pos]
        if opcode == 0x72:  # LONG_BINPUT
            slot = uint32(data, pos + 1)[0]
            if slot == len(slots) and not others:
                slots.append(stack[-1])
            else:
                memo.put(slot, stack[-1])
            pos += 5
        elif opcode == 0x68:  # BINGET
            slot = data[pos + 1]
            stack.append(slots[slot] if slot < len(slots) else memo.get(slot))
            pos += 2
        elif opcode == 0x4B:  # BININT1
            stack.append(data[pos + 1])
            pos += 2
        elif opcode == 0x58:  # BINUNICODE
            end = pos + 5 + uint32(data, pos + 1)[0]
            stack.append(str(data[pos + 5 : end], "utf-8", "surrogatepass"))
            pos = end
        elif opcode == 0x74:  # TUPLE
            items = tuple(stack)
            stack = machine.stack = outer.pop()
            stack.append(items)
            pos += 1
        elif opcode == 0x28:  # MARK
            outer.append(stack)
            stack = machine.stack = []
            pos += 1
        else:
            pos = handlers[opcode](machine, pos + 1)
            stack, limit = machine.stack, machine.limit
        if pos >= limit:
            limit = _leave_frame(machine, pos)
    return pos


def _leave_frame(machine: Machine, pos: int) -> int:
    """Close the frame that ends at `pos`, and return the end of the data, the new `frame_end`.

    An opcode across the end of a frame is refused: the C unpickler and pickletools read such a
    stream differently (python/cpython#154848).
    """
    size = len(machine.data)
    if pos > machine.limit and machine.limit < size:
        raise PickleError("an opcode lies across the end of its frame")
    if pos >= size:
        raise StarvedError("the stream ends before its STOP")
    machine.limit, machine.framed = size, False
    return size


def _use_beyond_frame(machine: Machine) -> None:
    """Record every match of `_IMPORT_PATTERN` near the end of a broken frame.

    Unpicklers resume at different bytes there, so no single run finds the imports of all of them.
    """
    window = machine.data[max(0, machine.limit - _AROUND) : machine.limit + _AROUND]
    for module, name in _IMPORT.findall(window):
        machine.use(module.decode(), name.decode())


def _check_piles(machine: Machine) -> None:
    if len(machine.outer) > machine.limits.nesting:
        raise PickleError(f"it nests deeper than {machine.limits.nesting}")
    if len(machine.memo) > machine.limits.memo_slots:
        raise PickleError(f"it has more than {machine.limits.memo_slots} memo slots")
    if len(machine.stack) + sum(map(len, machine.outer)) > _PILED:
        raise PickleError(f"more than {_PILED} objects wait on its stack")

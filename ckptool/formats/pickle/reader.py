"""Pickle bytes -> ParsedPickle: an inert tree, and every name that loading it would import."""

import re
from itertools import repeat
from struct import Struct
from struct import error as StructError  # noqa: N812 - it is an exception
from typing import Any, Final

from msgspec import Struct as Record

from ckptool.formats.files.gc_pause import pause_gc
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.machine import PickleMachine, PickleStop
from ckptool.formats.pickle.nodes import (
    GlobalName,
    PersistentReference,
    PickleError,
    TruncatedPickleError,
)
from ckptool.formats.pickle.opcodes import HANDLERS
from ckptool.formats.pickle.safe_globals import classify_global
from ckptool.formats.pickle.tensor_calls import run_tensor_calls
from ckptool.model import Safety, Skipped

__all__ = [
    "ParsedPickle",
    "PickleError",
    "is_complete_or_broken",
    "parse_pickle",
    "parse_whole_pickle",
    "scan_globals",
    "select_dangerous",
    "select_unsafe",
]

_SLICE_OPCODES: Final = 1 << 16
"""Opcodes between two checks of the stack and memo sizes."""
_MAX_STACK_OBJECTS: Final = 2_000_000
"""Objects on the stack: an unbatched tuple puts all its elements there."""
_UINT32: Final = Struct("<I").unpack_from
_MAX_EMBEDDED_DEPTH: Final = 4
"""Nesting of pickles in byte strings of pickles."""
_MAX_CONSECUTIVE_PICKLES: Final = 64
_FRAME_END_MARGIN: Final = 1 << 16
_NOT_SEARCHED: Final = GlobalName("<pickle>", "<not searched>", computed=True)
"""Stands for the names of pickles that lie too deep in others, or behind too many, to be read."""
_NOT_READ_ON: Final = GlobalName("<pickle>", "<after what no pickler writes>")
"""Stands for the names after an opcode at which reading stopped and an unpickler may go on."""
_IMPORT_PATTERN: Final = re.compile(rb"c([A-Za-z_][A-Za-z_0-9.]*)\n([A-Za-z_][A-Za-z_0-9.]*)\n")
_MISSING_OPERAND: Final = (
    "an opcode needs something that is not on the stack, in the memo or in the stream"
)
_INVALID_OPCODES: Final = b"\xff" * 16
"""Longer than any fixed-size operand: with it appended, only stack or memo can lack an operand."""
_STREAM_ERRORS: Final = (IndexError, KeyError, ValueError, OverflowError, StructError)
"""Exceptions of opcode handlers on a broken stream: empty stack, empty memo slot, bad number."""


class ParsedPickle(Record):
    """One pickle, as far as it could be read."""

    root: object = None
    end: int = 0
    """Position after its STOP; 0 if reading stopped before."""
    error: str = ""
    """Why reading stopped before STOP; "" if it did not."""
    is_truncated: bool = False
    """Whether reading stopped at the end of the data: with more bytes it may be complete."""
    globals: list[GlobalName] = []
    """Every name that it uses, in order of first use, also if the result is discarded."""
    persistent_references: list[PersistentReference] = []
    blob_offsets: dict[int, int] = {}
    """id of a byte string in the tree -> its offset in the data."""
    archive_count: int = 0
    """Number of byte strings that are archives, compressed or programs, which were not opened."""
    attribute_calls: list[tuple[Any, ...]] = []
    """Arguments of each call of `getattr`, also if its result is discarded."""
    refusal: str = ""
    """What it does that `torch.load(weights_only=True)` refuses, names apart; "" if nothing."""

    def list_unread(self) -> tuple[Skipped, ...]:
        """Return what stands in the pickle and was not looked into."""
        if not self.archive_count:
            return ()
        others = f", and {self.archive_count - 1} more," if self.archive_count > 1 else ""
        reason = "it is an archive (as torch.save writes), compressed data or a program"
        return (Skipped(f"a byte string in the pickle{others}", reason),)


def parse_pickle(data: bytes, limits: Limits, start: int = 0) -> ParsedPickle:
    """Return the pickle at `start`; a fault in the data is in its `error`, never raised."""
    machine = PickleMachine(data, limits)
    pickle = ParsedPickle(
        blob_offsets=machine.blob_offsets,
        persistent_references=machine.persistent_references,
        attribute_calls=machine.attribute_calls,
    )
    try:
        _run_machine(machine, start)
    except PickleStop as stop:
        pickle.root, pickle.end = stop.value, stop.end
    except PickleError as pickle_error:
        pickle.error, pickle.is_truncated = (
            str(pickle_error),
            isinstance(pickle_error, TruncatedPickleError),
        )
    except UnicodeError:
        pickle.error, pickle.is_truncated = "a string does not match its opcode", True
    except _STREAM_ERRORS as error:
        pickle.error = _MISSING_OPERAND
        pickle.is_truncated = isinstance(error, IndexError | StructError)
    if pickle.error and machine.in_frame:
        _record_imports_near_frame_end(machine)
    embedded_names = [
        name
        for blob in machine.embedded_pickles.values()
        for name in scan_globals(blob, limits, 0, 1)
    ]
    pickle.archive_count = len(machine.embedded_archives)
    pickle.refusal = machine.refusal
    pickle.globals = list(dict.fromkeys((*machine.globals.values(), *embedded_names)))
    return pickle


def is_complete_or_broken(data: bytes, limits: Limits) -> bool:
    """Whether the pickle at the start of `data` ends or is broken within `data`."""
    pickle = parse_pickle(data + _INVALID_OPCODES, limits)
    return not pickle.is_truncated or pickle.error == _MISSING_OPERAND


def parse_whole_pickle(data: bytes, limits: Limits) -> ParsedPickle:
    """Return the pickle in `data`; bytes after it are an error."""
    pickle = parse_pickle(data, limits)
    if not pickle.error and pickle.end != len(data):
        pickle.error = f"{len(data) - pickle.end} bytes follow the end of the pickle"
        pickle.globals += scan_globals(data, limits, pickle.end)
    return pickle


def scan_globals(data: bytes, limits: Limits, start: int = 0, depth: int = 0) -> list[GlobalName]:
    """Return the names that the consecutive pickles from `start` on use, also embedded ones.

    What is broken counts as a pickle if it begins with PROTO, or does more than import by lines of
    text: any text can begin like a pickle of protocol 0.
    """
    globals_by_name: dict[str, GlobalName] = {}
    for _ in range(_MAX_CONSECUTIVE_PICKLES):
        if start >= len(data):
            break
        machine = PickleMachine(data, limits)
        is_pickle = data[start : start + 1] == b"\x80"
        try:
            _run_machine(machine, start)
        except PickleStop as stop:
            start, is_pickle = stop.end, True
        except _STREAM_ERRORS as error:
            start = len(data)
            is_pickle = is_pickle or machine.is_no_text
            if is_pickle and type(error) is PickleError:
                globals_by_name[_NOT_READ_ON.name] = _NOT_READ_ON
        if not is_pickle:
            continue
        blobs = list(machine.embedded_pickles.values())
        if blobs and depth >= _MAX_EMBEDDED_DEPTH:
            globals_by_name["<nested>"] = _NOT_SEARCHED
            blobs = []
        embedded_names = (
            name for blob in blobs for name in scan_globals(blob, limits, 0, depth + 1)
        )
        globals_by_name.update(
            {name.qualified_name: name for name in (*machine.globals.values(), *embedded_names)}
        )
    else:
        if start < len(data):
            globals_by_name["<nested>"] = _NOT_SEARCHED
    return list(globals_by_name.values())


def select_dangerous(names: list[GlobalName]) -> list[GlobalName]:
    """Return those of `names` that are classified as dangerous."""
    return [name for name in names if classify_global(name) is Safety.DANGEROUS]


def select_unsafe(names: list[GlobalName]) -> list[GlobalName]:
    """Return those of `names` that torch.load(weights_only=True) refuses."""
    return [name for name in names if classify_global(name) is not Safety.SAFE]


def _run_machine(machine: PickleMachine, start: int) -> None:
    """Run opcodes from `start` until one raises.

    Raises:
        PickleStop: the pickle is complete.
        PickleError: it contradicts the format, or exceeds a limit.
    """
    pos = start
    with pause_gc():
        for _ in range(machine.limits.opcodes // _SLICE_OPCODES + 1):
            pos = _run_slice(machine, pos)
            _check_limits(machine)
    raise PickleError(f"it has more than {machine.limits.opcodes} opcodes")


def _run_slice(machine: PickleMachine, pos: int) -> int:
    """Run `_SLICE_OPCODES` opcodes; the five most frequent ones are inlined for speed."""
    data, handlers, memo, metastack = machine.data, HANDLERS, machine.memo, machine.metastack
    stack, frame_end, uint32 = machine.stack, machine.frame_end, _UINT32
    slots, sparse_slots, tensor_callee = memo.slots, memo.sparse_slots, machine.tensor_callee
    for _ in repeat(None, _SLICE_OPCODES):
        opcode = data[pos]
        if opcode == 0x72:  # LONG_BINPUT
            slot = uint32(data, pos + 1)[0]
            if slot == len(slots) and not sparse_slots:
                slots.append(stack[-1])
            else:
                memo.put(slot, stack[-1])
            pos += 5
        elif opcode == 0x68:  # BINGET
            slot = data[pos + 1]
            node = slots[slot] if slot < len(slots) else memo.get(slot)
            stack.append(node)
            pos += 2
            if node is tensor_callee:
                pos = run_tensor_calls(machine, pos)
        elif opcode == 0x58:  # BINUNICODE
            end = pos + 5 + uint32(data, pos + 1)[0]
            stack.append(str(data[pos + 5 : end], "utf-8", "surrogatepass"))
            pos = end
        elif opcode == 0x74:  # TUPLE
            items = tuple(stack)
            stack = machine.stack = metastack.pop()
            stack.append(items)
            pos += 1
        elif opcode == 0x28:  # MARK
            metastack.append(stack)
            stack = machine.stack = []
            pos += 1
        else:
            pos = handlers[opcode](machine, pos + 1)
            stack, frame_end = machine.stack, machine.frame_end
            tensor_callee = machine.tensor_callee
        if pos >= frame_end:
            frame_end = _leave_frame(machine, pos)
    return pos


def _leave_frame(machine: PickleMachine, pos: int) -> int:
    """Close the frame that ends at `pos`, and return the end of the data, the new `frame_end`.

    An opcode across the end of a frame is refused: the C unpickler and pickletools read such a
    stream differently (python/cpython#154848).
    """
    size = len(machine.data)
    if pos > machine.frame_end and machine.frame_end < size:
        raise PickleError("an opcode crosses the end of its frame")
    if pos >= size:
        raise TruncatedPickleError("the stream ends before its STOP")
    machine.frame_end, machine.in_frame = size, False
    return size


def _record_imports_near_frame_end(machine: PickleMachine) -> None:
    """Record every match of `_IMPORT_PATTERN` near the end of a broken frame.

    Unpicklers resume at different bytes there, so no single run finds the imports of all of them.
    """
    window = machine.data[
        max(0, machine.frame_end - _FRAME_END_MARGIN) : machine.frame_end + _FRAME_END_MARGIN
    ]
    for module, name in _IMPORT_PATTERN.findall(window):
        machine.record_global(module.decode(), name.decode())


def _check_limits(machine: PickleMachine) -> None:
    if len(machine.metastack) > machine.limits.nesting:
        raise PickleError(f"it nests deeper than {machine.limits.nesting}")
    if len(machine.memo) > machine.limits.memo_slots:
        raise PickleError(f"it has more than {machine.limits.memo_slots} memo slots")
    if len(machine.stack) + sum(map(len, machine.metastack)) > _MAX_STACK_OBJECTS:
        raise PickleError(f"more than {_MAX_STACK_OBJECTS} objects are on its stack")

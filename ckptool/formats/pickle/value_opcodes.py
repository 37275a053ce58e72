"""Opcodes of numbers, strings and bytes -> plain values on the machine's stack."""

from functools import partial
from struct import Struct
from typing import Final

from ckptool.formats.pickle.machine import OpcodeHandler, PickleMachine, register_handler
from ckptool.formats.pickle.nodes import (
    BrokenPickleError,
    ByteArrayNode,
    PickleError,
    TruncatedPickleError,
)

_MAX_INT_DIGITS: Final = 2_000
_MAX_INT_BYTES: Final = 1_000
_MIN_BLOB_BYTES: Final = 64
"""Byte strings of at least this size get an entry in `PickleMachine.blob_offsets`."""
_UINT16, _UINT32, _UINT64 = Struct("<H"), Struct("<I"), Struct("<Q")
_INT32, _DOUBLE = Struct("<i"), Struct(">d")

VALUE_HANDLERS: Final[dict[int, OpcodeHandler]] = {}
_opcode = partial(register_handler, VALUE_HANDLERS)


def parse_decimal(line: bytes) -> int:
    """Return the int that a line of decimal digits spells.

    Raises:
        PickleError: it has more than `_MAX_INT_DIGITS` digits.
    """
    if len(line) > _MAX_INT_DIGITS:
        raise PickleError(f"a number of {len(line)} digits")
    return int(line)


@_opcode(0x4E)  # NONE
def _load_none(m: PickleMachine, pos: int) -> int:
    m.stack.append(None)
    return pos


@_opcode(0x88)  # NEWTRUE
def _load_newtrue(m: PickleMachine, pos: int) -> int:
    m.stack.append(True)
    return pos


@_opcode(0x89)  # NEWFALSE
def _load_newfalse(m: PickleMachine, pos: int) -> int:
    m.stack.append(False)
    return pos


@_opcode(0x4B)  # BININT1
def _load_binint1(m: PickleMachine, pos: int) -> int:
    m.stack.append(m.data[pos])
    return pos + 1


@_opcode(0x4D)  # BININT2
def _load_binint2(m: PickleMachine, pos: int) -> int:
    m.stack.append(_UINT16.unpack_from(m.data, pos)[0])
    return pos + 2


@_opcode(0x4A)  # BININT
def _load_binint(m: PickleMachine, pos: int) -> int:
    m.stack.append(_INT32.unpack_from(m.data, pos)[0])
    return pos + 4


@_opcode(0x49)  # INT
def _load_int(m: PickleMachine, pos: int) -> int:
    line, pos = m.read_line(pos)
    m.stack.append(line == b"01" if line in {b"00", b"01"} else parse_decimal(line))
    return pos


@_opcode(0x4C)  # LONG
def _load_long(m: PickleMachine, pos: int) -> int:
    line, pos = m.read_line(pos)
    m.stack.append(parse_decimal(line.removesuffix(b"L")))
    return pos


@_opcode(0x8A)  # LONG1
def _load_long1(m: PickleMachine, pos: int) -> int:
    return _push_binary_int(m, pos + 1, m.data[pos])


@_opcode(0x8B)  # LONG4
def _load_long4(m: PickleMachine, pos: int) -> int:
    return _push_binary_int(m, pos + 4, _INT32.unpack_from(m.data, pos)[0])


@_opcode(0x46)  # FLOAT
def _load_float(m: PickleMachine, pos: int) -> int:
    line, pos = m.read_line(pos)
    m.stack.append(float(line))
    return pos


@_opcode(0x47)  # BINFLOAT
def _load_binfloat(m: PickleMachine, pos: int) -> int:
    m.stack.append(_DOUBLE.unpack_from(m.data, pos)[0])
    return pos + 8


def _push_binary_int(m: PickleMachine, pos: int, nbytes: int) -> int:
    if not 0 <= nbytes <= _MAX_INT_BYTES:
        raise PickleError(f"a number of {nbytes} bytes")
    m.stack.append(int.from_bytes(m.data[pos : pos + nbytes], "little", signed=True))
    return pos + nbytes


# -- strings --------------------------------------------------------------------------


@_opcode(0x8C)  # SHORT_BINUNICODE
def _load_short_binunicode(m: PickleMachine, pos: int) -> int:
    end = pos + 1 + m.data[pos]
    m.stack.append(str(m.data[pos + 1 : end], "utf-8", "surrogatepass"))
    return end


@_opcode(0x8D)  # BINUNICODE8
def _load_binunicode8(m: PickleMachine, pos: int) -> int:
    data, end = _read_counted_bytes(m, pos + 8, _UINT64.unpack_from(m.data, pos)[0])
    m.stack.append(str(data, "utf-8", "surrogatepass"))
    return end


@_opcode(0x56)  # UNICODE
def _load_unicode(m: PickleMachine, pos: int) -> int:
    line, pos = m.read_line(pos)
    m.stack.append(str(line, "raw-unicode-escape"))
    return pos


@_opcode(0x53)  # STRING
def _load_string(m: PickleMachine, pos: int) -> int:
    from ckptool.formats.python_text import decode_escapes

    line, pos = m.read_line(pos)
    line = line.strip()
    if len(line) < 2 or line[:1] not in {b"'", b'"'} or line[:1] != line[-1:]:
        raise BrokenPickleError("a string without its quotes")
    m.stack.append(_decode_python2_string(m, decode_escapes(line[1:-1])))
    return pos


@_opcode(0x54)  # BINSTRING
def _load_binstring(m: PickleMachine, pos: int) -> int:
    data, end = _read_counted_bytes(m, pos + 4, _INT32.unpack_from(m.data, pos)[0])
    m.stack.append(_decode_python2_string(m, data))
    return end


@_opcode(0x55)  # SHORT_BINSTRING
def _load_short_binstring(m: PickleMachine, pos: int) -> int:
    data, end = _read_counted_bytes(m, pos + 1, m.data[pos])
    m.stack.append(_decode_python2_string(m, data))
    return end


@_opcode(0x43)  # SHORT_BINBYTES
def _load_short_binbytes(m: PickleMachine, pos: int) -> int:
    return _push_bytes(m, pos + 1, m.data[pos])


@_opcode(0x42)  # BINBYTES
def _load_binbytes(m: PickleMachine, pos: int) -> int:
    return _push_bytes(m, pos + 4, _UINT32.unpack_from(m.data, pos)[0])


@_opcode(0x8E)  # BINBYTES8
def _load_binbytes8(m: PickleMachine, pos: int) -> int:
    return _push_bytes(m, pos + 8, _UINT64.unpack_from(m.data, pos)[0])


@_opcode(0x96)  # BYTEARRAY8
def _load_bytearray8(m: PickleMachine, pos: int) -> int:
    return _push_bytes(m, pos + 8, _UINT64.unpack_from(m.data, pos)[0], ByteArrayNode)


def _push_bytes(m: PickleMachine, pos: int, nbytes: int, node_type: type[bytes] = bytes) -> int:
    content, end = _read_counted_bytes(m, pos, nbytes)
    content = node_type(content)
    m.stack.append(content)
    if nbytes >= _MIN_BLOB_BYTES:
        m.blob_offsets[id(content)] = pos
    m.note_bytes(content)
    return end


def _read_counted_bytes(m: PickleMachine, pos: int, nbytes: int) -> tuple[bytes, int]:
    """Return the `nbytes` bytes at `pos`, and the position after them.

    Raises:
        TruncatedPickleError: fewer bytes remain in the frame.
    """
    if not 0 <= nbytes <= m.frame_end - pos:
        raise TruncatedPickleError(
            f"an opcode claims {nbytes} bytes but {max(0, m.frame_end - pos)} are left"
        )
    return m.data[pos : pos + nbytes], pos + nbytes


def _decode_python2_string(m: PickleMachine, data: bytes) -> str:
    """Decode a Python 2 `str`, which held text or bytes: as UTF-8 if valid, else as Latin-1."""
    m.note_bytes(data)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")

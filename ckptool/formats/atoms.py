"""Opcodes of numbers, strings and bytes -> plain values on the machine's stack."""

from functools import partial
from struct import Struct
from typing import Final

from ckptool.formats.machine import Handler, Machine, register
from ckptool.formats.nodes import PickleError, StarvedError

_LONG_DIGITS: Final = 2_000
_LONG_BYTES: Final = 1_000
_BLOB: Final = 64
"""Byte strings of at least this size get an entry in `PickleMachine.blob_offsets`."""
_UINT16, _UINT32, _UINT64 = Struct("<H"), Struct("<I"), Struct("<Q")
_INT32, _DOUBLE = Struct("<i"), Struct(">d")

ATOMS: Final[dict[int, Handler]] = {}
_on = partial(register, ATOMS)


def decimal(line: bytes) -> int:
    """Return the int that a line of decimal digits spells.

    Raises:
        PickleError: it has more than `_MAX_INT_DIGITS` digits.
    """
    if len(line) > _LONG_DIGITS:
        raise PickleError(f"a number of {len(line)} digits")
    return int(line)


@_on(0x4E)  # NONE
def _none(m: Machine, pos: int) -> int:
    m.stack.append(None)
    return pos


@_on(0x88)  # NEWTRUE
def _newtrue(m: Machine, pos: int) -> int:
    m.stack.append(True)
    return pos


@_on(0x89)  # NEWFALSE
def _newfalse(m: Machine, pos: int) -> int:
    m.stack.append(False)
    return pos


@_on(0x4D)  # BININT2
def _binint2(m: Machine, pos: int) -> int:
    m.stack.append(_UINT16.unpack_from(m.data, pos)[0])
    return pos + 2


@_on(0x4A)  # BININT
def _binint(m: Machine, pos: int) -> int:
    m.stack.append(_INT32.unpack_from(m.data, pos)[0])
    return pos + 4


@_on(0x49)  # INT
def _int(m: Machine, pos: int) -> int:
    line, pos = m.line(pos)
    m.stack.append(line == b"01" if line in {b"00", b"01"} else decimal(line))
    return pos


@_on(0x4C)  # LONG
def _long(m: Machine, pos: int) -> int:
    line, pos = m.line(pos)
    m.stack.append(decimal(line.removesuffix(b"L")))
    return pos


@_on(0x8A)  # LONG1
def _long1(m: Machine, pos: int) -> int:
    return _binary_long(m, pos + 1, m.data[pos])


@_on(0x8B)  # LONG4
def _long4(m: Machine, pos: int) -> int:
    return _binary_long(m, pos + 4, _INT32.unpack_from(m.data, pos)[0])


@_on(0x46)  # FLOAT
def _float(m: Machine, pos: int) -> int:
    line, pos = m.line(pos)
    m.stack.append(float(line))
    return pos


@_on(0x47)  # BINFLOAT
def _binfloat(m: Machine, pos: int) -> int:
    m.stack.append(_DOUBLE.unpack_from(m.data, pos)[0])
    return pos + 8


def _binary_long(m: Machine, pos: int, nbytes: int) -> int:
    if not 0 <= nbytes <= _LONG_BYTES:
        raise PickleError(f"a number of {nbytes} bytes")
    m.stack.append(int.from_bytes(m.data[pos : pos + nbytes], "little", signed=True))
    return pos + nbytes


# -- strings --------------------------------------------------------------------------


@_on(0x8C)  # SHORT_BINUNICODE
def _short_binunicode(m: Machine, pos: int) -> int:
    end = pos + 1 + m.data[pos]
    m.stack.append(str(m.data[pos + 1 : end], "utf-8", "surrogatepass"))
    return end


@_on(0x8D)  # BINUNICODE8
def _binunicode8(m: Machine, pos: int) -> int:
    text, end = _claimed(m, pos + 8, _UINT64.unpack_from(m.data, pos)[0])
    m.stack.append(str(text, "utf-8", "surrogatepass"))
    return end


@_on(0x56)  # UNICODE
def _unicode(m: Machine, pos: int) -> int:
    line, pos = m.line(pos)
    m.stack.append(str(line, "raw-unicode-escape"))
    return pos


@_on(0x53)  # STRING
def _string(m: Machine, pos: int) -> int:
    from codecs import escape_decode

    line, pos = m.line(pos)
    line = line.strip()
    if len(line) < 2 or line[:1] not in {b"'", b'"'} or line[:1] != line[-1:]:
        raise PickleError("a string without its quotes")
    m.stack.append(_python2_text(escape_decode(line[1:-1])[0]))
    return pos


@_on(0x54)  # BINSTRING
def _binstring(m: Machine, pos: int) -> int:
    text, end = _claimed(m, pos + 4, _INT32.unpack_from(m.data, pos)[0])
    m.stack.append(_python2_text(text))
    return end


@_on(0x55)  # SHORT_BINSTRING
def _short_binstring(m: Machine, pos: int) -> int:
    text, end = _claimed(m, pos + 1, m.data[pos])
    m.stack.append(_python2_text(text))
    return end


@_on(0x43)  # SHORT_BINBYTES
def _short_binbytes(m: Machine, pos: int) -> int:
    return _bytes(m, pos + 1, m.data[pos])


@_on(0x42)  # BINBYTES
def _binbytes(m: Machine, pos: int) -> int:
    return _bytes(m, pos + 4, _UINT32.unpack_from(m.data, pos)[0])


@_on(0x8E)  # BINBYTES8
def _binbytes8(m: Machine, pos: int) -> int:
    return _bytes(m, pos + 8, _UINT64.unpack_from(m.data, pos)[0])


@_on(0x96)  # BYTEARRAY8
def _bytearray8(m: Machine, pos: int) -> int:
    return _bytes(m, pos + 8, _UINT64.unpack_from(m.data, pos)[0])


def _bytes(m: Machine, pos: int, nbytes: int) -> int:
    content, end = _claimed(m, pos, nbytes)
    m.stack.append(content)
    if nbytes >= _BLOB:
        m.blobs[id(content)] = pos
    return end


def _claimed(m: Machine, pos: int, nbytes: int) -> tuple[bytes, int]:
    """Return the `nbytes` bytes at `pos`, and the position after them.

    Raises:
        TruncatedPickleError: fewer bytes remain in the frame.
    """
    if not 0 <= nbytes <= m.limit - pos:
        raise StarvedError(f"an opcode claims {nbytes} bytes and {max(0, m.limit - pos)} are left")
    return m.data[pos : pos + nbytes], pos + nbytes


def _python2_text(text: bytes) -> str:
    """Decode a Python 2 `str`, which held text or bytes: as UTF-8 if valid, else as Latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")

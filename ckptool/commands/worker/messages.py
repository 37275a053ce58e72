"""What passes between a command and its child process: frames, answers, errors.

A request is pickled: it comes from the command, which the child trusts, and holds constructor
arguments of any plain type. An answer comes from a process that runs other people's code: it is
decoded into the type that was asked for, or refused.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from msgspec import Raw, Struct
from msgspec.msgpack import Decoder, Encoder

from ckptool.errors import (
    CkptoolError,
    CorruptCheckpointError,
    ModuleError,
    PlanError,
    ReadError,
    UnconfirmedRenamesError,
    UnknownFormatError,
    UsageError,
    WriteError,
)
from ckptool.locations import Location, RemotePath, parse_location

MAX_ANSWER_NBYTES: Final = 2 << 30
"""Maximum size in bytes of one answer."""
_HEADER_NBYTES: Final = 8
_CHUNK_NBYTES: Final = 1 << 20


class ChildSetup(Struct, frozen=True):
    """What the child process is told before its first request."""

    import_path: tuple[str, ...]
    """`sys.path` of the command."""
    uses_file_kwargs: bool
    """Whether constructor arguments that a file brings may be used."""


class Announcement(Struct, frozen=True, tag=True):
    """Constructor arguments of a file that are about to be used."""

    target: str
    arguments: dict[str, str]
    """Name -> value as Python source, cut."""


class NamespaceNotice(Struct, frozen=True, tag=True):
    """A dict is about to be passed as an argparse.Namespace."""

    target: str
    parameter: str


class WarningNotice(Struct, frozen=True, tag=True):
    """Warnings that code of the user gave."""

    texts: tuple[str, ...]
    """Each in one line with its category and place; the first ones, if there are many."""
    count: int
    """Number of all of them."""


class Answer(Struct, frozen=True, tag=True):
    """The answer to a request."""

    number: int
    """The request's; chosen at random."""
    content: Raw


class Failure(Struct, frozen=True, tag=True):
    """The error that a request ended in."""

    number: int
    name: str
    """Class of the error."""
    arguments: tuple[str, ...]
    trace: str
    """Traceback in the child process."""


Notice = Announcement | NamespaceNotice | WarningNotice
Message = Notice | Answer | Failure


def _encode_location(value: object) -> object:
    if isinstance(value, RemotePath):
        return value.url
    if isinstance(value, Location):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be part of an answer")


def _decode_location(kind: type, value: object) -> object:
    if isinstance(value, str) and issubclass(kind, Location):
        return parse_location(value)
    raise NotImplementedError(f"{kind.__name__} cannot be part of an answer")


encode: Final = Encoder(enc_hook=_encode_location).encode
decode_message: Final = Decoder(Message).decode


def decode_answer(content: Raw, answer_type: object) -> object:
    """Decode an answer.

    Raises:
        msgspec.DecodeError: it is not of `answer_type`.
    """
    return Decoder(answer_type, dec_hook=_decode_location).decode(content)


def write_frame(write: Callable[[memoryview], int], content: bytes) -> None:
    """Write a frame: its length in eight bytes, little-endian, and its content."""
    for part in (len(content).to_bytes(_HEADER_NBYTES, "little"), content):
        unsent = memoryview(part)
        while unsent:
            unsent = unsent[write(unsent[:_CHUNK_NBYTES]) :]


def read_frames(descriptor: int, max_nbytes: int | None) -> Iterator[bytes]:
    """Yield the frames of a pipe until it ends, or a frame is longer than `max_nbytes`."""
    while True:
        header = _read_exactly(descriptor, _HEADER_NBYTES)
        nbytes = int.from_bytes(header, "little")
        if len(header) < _HEADER_NBYTES or (max_nbytes is not None and nbytes > max_nbytes):
            return
        content = _read_exactly(descriptor, nbytes)
        if len(content) < nbytes:
            return
        yield content


def _read_exactly(descriptor: int, nbytes: int) -> bytes:
    """Return `nbytes` bytes of a pipe, or fewer where it ends; memory grows as they arrive."""
    content = bytearray()
    while len(content) < nbytes:
        chunk = os.read(descriptor, min(_CHUNK_NBYTES, nbytes - len(content)))
        if not chunk:
            break
        content += chunk
    return bytes(content)


_PATH_AND_REASON: Final = ("path", "reason")
_ARGUMENTS: Final[Mapping[type[CkptoolError], tuple[str, ...]]] = {
    CorruptCheckpointError: _PATH_AND_REASON,
    UnknownFormatError: _PATH_AND_REASON,
    ReadError: _PATH_AND_REASON,
    ModuleError: ("target", "reason"),
    UsageError: (),
    UnconfirmedRenamesError: (),
    PlanError: (),
    WriteError: (),
}
"""Error -> its arguments by attribute; () for its text alone."""
_ERRORS: Final = {kind.__name__: kind for kind in _ARGUMENTS}


def describe_error(error: CkptoolError) -> tuple[str, tuple[str, ...]]:
    """Return the name and the arguments of an error; of the nearest class that can be restored."""
    kind = next((kind for kind in type(error).__mro__ if kind in _ARGUMENTS), None)
    if kind is None:
        return "", (str(error),)
    names = _ARGUMENTS[kind]
    arguments = tuple(str(getattr(error, name)) for name in names) or (str(error),)
    keys: tuple[str, ...] = getattr(error, "keys", ())
    return kind.__name__, (*arguments, *keys)


def restore_error(failure: Failure, target: str) -> CkptoolError:
    """Return the error of a failure; a ModuleError where it makes no sense."""
    kind = _ERRORS.get(failure.name, ModuleError)
    arguments = failure.arguments
    if kind is UnconfirmedRenamesError and arguments:
        return UnconfirmedRenamesError(arguments[0], arguments[1:])
    if len(arguments) != (len(_ARGUMENTS[kind]) or 1):
        return ModuleError(target, "; ".join(arguments))
    if issubclass(kind, ReadError):
        return kind(parse_location(arguments[0]), arguments[1])
    return kind(*arguments)

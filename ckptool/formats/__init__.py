"""Location -> Checkpoint: one module per container, chosen by content, never by suffix."""

import atexit
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from msgspec.structs import replace

from ckptool.errors import ReadError, UnknownFormatError
from ckptool.formats import safetensors
from ckptool.formats.files import Source, is_directory, names_in, open_source
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.formats.strict_json import quoted
from ckptool.locations import Location
from ckptool.model import Checkpoint, Skipped

STDIN: Final = Path("<stdin>")
"""Path that errors and reports show for a checkpoint read from standard input."""

_BY_MAGIC: Final = ("torch_zip", "torch_tar")
_BY_TRIAL: Final = ("torch_legacy",)
"""A pickle has no magic bytes: these readers are tried last, after all other known formats."""
_DCP_METADATA: Final = ".metadata"
_INDEX: Final = r".+\.(?:safetensors|bin|pth?)\.index(?:\.[\w-]+)?\.json"
_CANDIDATE: Final = r"(?i).+\.(?:safetensors|bin|pth?|pt2|ckpt|pkl|pickle|tar)"
_WEIGHTS: Final = (
    r"(?:model|pytorch_model|adapter_model|diffusion_pytorch_model|open_clip_(?:pytorch_)?model)"
    r"\.(?:safetensors|bin)"
)
"""Weight file names that the Hugging Face libraries save in a folder."""
_NAMED: Final = 5
_BLANKS: Final = 64
"""Bytes searched for the first character that is not blank."""
_COPIED: Final = 1 << 20


class _Reader(Protocol):
    def matches(self, source: Source) -> bool: ...

    def read(self, source: Source, limits: Limits) -> Checkpoint: ...


def open_checkpoint(path: Location, limits: Limits = DEFAULT) -> Checkpoint:
    """Describe the checkpoint at `path`: a file, an index of shards, or a directory with one.

    Raises:
        UnknownFormatError: no reader recognises it; the message names the format if known.
        CorruptCheckpointError: the container is damaged or ambiguous.
        ReadError: it cannot be read, or a directory holds several checkpoints.
    """
    if is_directory(path):
        return _open_directory(path, limits)
    if path.name == _DCP_METADATA:
        return _open_dcp(path.parent, limits)
    with open_source(path) as source:
        if not _is_index(source):
            return _describe(source, limits)
    return _open_sharded(path, limits)


def open_stream(stream: BinaryIO, limits: Limits = DEFAULT) -> Checkpoint:
    """Describe a single-file checkpoint read from `stream`, spooled to an unnamed temporary file.

    Raises:
        ReadError: as `open_checkpoint`, or the stream is longer than `limits.stream_bytes`.
    """
    from tempfile import TemporaryFile

    # Open until the process ends: the spans of the result refer to this file.
    spool = TemporaryFile()  # noqa: SIM115
    atexit.register(spool.close)
    try:
        nbytes = _copy(stream, spool, limits.stream_bytes)
        place = Path(f"/dev/fd/{spool.fileno()}")
        checkpoint = _describe(Source(place, spool.fileno(), nbytes), limits)
    except OSError as error:
        raise ReadError(STDIN, error.strerror or str(error)) from error
    except ReadError as error:
        raise type(error)(STDIN, error.reason) from error
    return replace(checkpoint, path=STDIN)


def _open_directory(directory: Location, limits: Limits) -> Checkpoint:
    names = names_in(directory)
    indexes = [name for name in names if re.fullmatch(_INDEX, name)]
    if _DCP_METADATA in names:
        indexes.append(_DCP_METADATA)
    if len(indexes) > 1:
        reason = f"holds {' and '.join(indexes)}: name the one that is meant"
        raise ReadError(directory, reason)
    if not indexes:
        weights = [name for name in names if re.fullmatch(_WEIGHTS, name)]
        files = weights or [name for name in names if re.fullmatch(_CANDIDATE, name)]
        if len(files) != 1:
            raise ReadError(directory, _without_index(directory, names))
        return _beside(_open_file(directory / files[0], limits), names)
    if indexes == [_DCP_METADATA]:
        return _open_dcp(directory, limits)
    return replace(_open_sharded(directory / indexes[0], limits), path=directory)


def _beside(checkpoint: Checkpoint, names: Sequence[str]) -> Checkpoint:
    """Add a Skipped entry that lists the other checkpoint files in the same folder."""
    others = [n for n in names if n != checkpoint.path.name and re.fullmatch(_CANDIDATE, n)]
    if not others:
        return checkpoint
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    what = f"beside the weights: {', '.join(map(quoted, others[:_NAMED]))}{more}"
    skipped = Skipped(what, "name them to have them read")
    return replace(checkpoint, skipped=(*checkpoint.skipped, skipped))


def _is_index(source: Source) -> bool:
    if not source.head(_BLANKS).lstrip().startswith(b"{"):
        return False
    from ckptool.formats import sharded

    return sharded.matches(source)


def _open_sharded(index: Location, limits: Limits) -> Checkpoint:
    from ckptool.formats import sharded

    return sharded.read(index, limits, _open_file)


def _open_dcp(directory: Location, limits: Limits) -> Checkpoint:
    from ckptool.formats import dcp

    return dcp.read(directory, limits)


def _without_index(directory: Location, names: Sequence[str]) -> str:
    """Return the error message for a directory without an index or a single weights file."""
    if not names:
        return "is an empty directory"
    if any(name.endswith(".distcp") for name in names):
        return f"holds .distcp files and no {_DCP_METADATA}: the save was not completed"
    files = [name for name in names if re.fullmatch(_CANDIDATE, name)]
    below = (f"{name}/" for name in names if is_directory(directory / name))
    found = list(map(quoted, files or below))
    if not found:
        return "is a directory without a checkpoint"
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"is a directory without an index: name one of {', '.join(found[:_NAMED])}{more}"


def _open_file(path: Location, limits: Limits) -> Checkpoint:
    with open_source(path) as source:
        return _describe(source, limits)


def _describe(source: Source, limits: Limits) -> Checkpoint:
    # First: a valid safetensors file may start with the bytes of a zip or a pickle; the reverse
    # cannot happen.
    if safetensors.matches(source):
        return safetensors.read(source, limits)
    if reader := _reader(_BY_MAGIC, source):
        return reader.read(source, limits)
    from ckptool.formats import pointers

    head = source.head(pointers.HEAD_BYTES)
    if what := pointers.foreign(head):
        raise UnknownFormatError(source.path, what)
    if reader := _reader(_BY_TRIAL, source):
        return reader.read(source, limits)
    raise UnknownFormatError(source.path, pointers.leftover(head))


def _reader(names: Sequence[str], source: Source) -> _Reader | None:
    for name in names:
        reader: _Reader = import_module(f"{__name__}.{name}")
        if reader.matches(source):
            return reader
    return None


def _copy(stream: BinaryIO, spool: BinaryIO, limit: int) -> int:
    """Copy `stream` to `spool`; return its length in bytes."""
    nbytes = 0
    while piece := stream.read(_COPIED):
        nbytes += len(piece)
        if nbytes > limit:
            raise ReadError(STDIN, f"is longer than {limit} bytes: save it to a file first")
        spool.write(piece)
    spool.flush()
    return nbytes

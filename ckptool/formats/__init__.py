"""Location -> Checkpoint: one module per container, chosen by content, never by suffix."""

import atexit
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from msgspec.structs import replace

from ckptool.errors import ReadError, UnknownFormatError
from ckptool.formats.files.shared_descriptors import SHARED_DESCRIPTORS
from ckptool.formats.files.source import ByteSource, is_directory, list_names, open_source
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.formats.pickle.name_origin import SOURCE_BUDGET
from ckptool.formats.safetensors import reader as safetensors_reader
from ckptool.formats.sharded.sibling_files import (
    CHECKPOINT_PATTERN,
    MAX_LISTED,
    list_unread_siblings,
)
from ckptool.formats.strict_json import quote_text
from ckptool.locations import Location
from ckptool.model import Checkpoint
from ckptool.phrases import join_limited

STDIN: Final = Path("<stdin>")
"""Path that errors and reports show for a checkpoint read from standard input."""

_MAGIC_READERS: Final = ("torch.zip_reader", "torch.tar")
_TRIAL_READERS: Final = ("torch.legacy",)
"""A pickle has no magic bytes: these readers are tried last, after all other known formats."""
_DCP_METADATA: Final = ".metadata"
_INDEX_PATTERN: Final = r".+\.(?:safetensors|bin|pth?)\.index(?:\.[\w-]+)?\.json"
_WEIGHTS_PATTERN: Final = (
    r"(?:model|pytorch_model|adapter_model|diffusion_pytorch_model|open_clip_(?:pytorch_)?model)"
    r"\.(?:safetensors|bin)"
)
"""Weight file names that the Hugging Face libraries save in a folder."""
_MAX_LEADING_BLANKS: Final = 64
"""Bytes searched for the first character that is not blank."""
_COPY_CHUNK_BYTES: Final = 1 << 20


class _FormatReader(Protocol):
    def matches(self, source: ByteSource) -> bool: ...

    def read(self, source: ByteSource, limits: Limits) -> Checkpoint: ...


def open_checkpoint(path: Location, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Describe the checkpoint at `path`: a file, an index of shards, or a directory with one.

    Raises:
        UnknownFormatError: no reader recognises it; the message names the format if known.
        CorruptCheckpointError: the container is damaged or ambiguous.
        ReadError: it cannot be read, or a directory holds several checkpoints.
    """
    SOURCE_BUDGET.reset()
    return _search_extra_state(_open_container(path, limits), limits)


def _open_container(path: Location, limits: Limits) -> Checkpoint:
    if is_directory(path):
        return _open_directory(path, limits)
    if path.name == _DCP_METADATA:
        return _open_dcp(path.parent, limits)
    with open_source(path) as source:
        if not _is_index(source):
            return _describe_source(source, limits)
    return _open_sharded(path, limits)


def _search_extra_state(checkpoint: Checkpoint, limits: Limits) -> Checkpoint:
    """Look for pickles in one-dimensional tensors of bytes."""
    has_bytes = any(
        tensor.dtype in {"uint8", "int8"} and len(tensor.shape) == 1
        for state in checkpoint.states
        for tensor in state.tensors.values()
    )
    if not has_bytes:
        return checkpoint
    from ckptool.formats.extra_state import add_extra_state

    return add_extra_state(checkpoint, limits)


def open_stream(stream: BinaryIO, limits: Limits = DEFAULT_LIMITS) -> Checkpoint:
    """Describe a single-file checkpoint read from `stream`, spooled to an unnamed temporary file.

    Raises:
        ReadError: as `open_checkpoint`, or the stream is longer than `limits.stream_bytes`.
    """
    from tempfile import TemporaryFile

    # Open until the process ends: the spans of the result refer to this file.
    spool = TemporaryFile()  # noqa: SIM115
    atexit.register(spool.close)
    try:
        nbytes = _copy_stream(stream, spool, limits.stream_bytes)
        SHARED_DESCRIPTORS.add(spool.fileno())
        spool_path = Path(f"/dev/fd/{spool.fileno()}")
        checkpoint = _search_extra_state(
            _describe_source(ByteSource(spool_path, spool.fileno(), nbytes), limits), limits
        )
    except OSError as error:
        raise ReadError(STDIN, error.strerror or str(error)) from error
    except ReadError as error:
        raise type(error)(STDIN, error.reason) from error
    return replace(checkpoint, path=STDIN)


def _open_directory(directory: Location, limits: Limits) -> Checkpoint:
    names = list_names(directory)
    indexes = [name for name in names if re.fullmatch(_INDEX_PATTERN, name)]
    if _DCP_METADATA in names:
        indexes.append(_DCP_METADATA)
    if len(indexes) > 1:
        reason = f"holds {' and '.join(indexes)}: name the one that is meant"
        raise ReadError(directory, reason)
    if not indexes:
        weight_files = [name for name in names if re.fullmatch(_WEIGHTS_PATTERN, name)]
        files = weight_files or [name for name in names if re.fullmatch(CHECKPOINT_PATTERN, name)]
        if len(files) != 1:
            raise ReadError(directory, _explain_missing_index(directory, names))
        return _note_sibling_files(_open_file(directory / files[0], limits), names)
    if indexes == [_DCP_METADATA]:
        return _note_sibling_files(_open_dcp(directory, limits), names)
    return replace(_open_sharded(directory / indexes[0], limits), path=directory)


def _note_sibling_files(checkpoint: Checkpoint, names: Sequence[str]) -> Checkpoint:
    """Add a Skipped entry that lists the other checkpoint files in the same folder."""
    read_names = {checkpoint.path.name, *(file.name for file in checkpoint.files)}
    siblings = list_unread_siblings(names, read_names, "weights")
    return replace(checkpoint, skipped=(*checkpoint.skipped, *siblings)) if siblings else checkpoint


def _is_index(source: ByteSource) -> bool:
    if not source.read_head(_MAX_LEADING_BLANKS).lstrip().startswith(b"{"):
        return False
    from ckptool.formats.sharded import reader

    return reader.matches(source)


def _open_sharded(index: Location, limits: Limits) -> Checkpoint:
    from ckptool.formats.sharded import reader

    return reader.read(index, limits, _open_file)


def _open_dcp(directory: Location, limits: Limits) -> Checkpoint:
    from ckptool.formats import dcp

    return dcp.read(directory, limits)


def _explain_missing_index(directory: Location, names: Sequence[str]) -> str:
    """Return the error message for a directory without an index or a single weights file."""
    if not names:
        return "is an empty directory"
    if any(name.endswith(".distcp") for name in names):
        return f"holds .distcp files and no {_DCP_METADATA}: the save was not completed"
    files = [name for name in names if re.fullmatch(CHECKPOINT_PATTERN, name)]
    folders = (f"{name}/" for name in names if is_directory(directory / name))
    candidates = files or list(folders)
    if not candidates:
        return "is a directory without a checkpoint"
    names_text = join_limited(candidates, MAX_LISTED, quote_text)
    return f"is a directory without an index: name one of {names_text}"


def _open_file(path: Location, limits: Limits) -> Checkpoint:
    with open_source(path) as source:
        return _describe_source(source, limits)


def _describe_source(source: ByteSource, limits: Limits) -> Checkpoint:
    # First: a valid safetensors file may start with the bytes of a zip or a pickle; the reverse
    # cannot happen.
    if safetensors_reader.matches(source):
        return safetensors_reader.read(source, limits)
    if reader := _find_reader(_MAGIC_READERS, source):
        return reader.read(source, limits)
    from ckptool.formats import unrecognized

    head = source.read_head(unrecognized.HEAD_BYTES)
    if description := unrecognized.identify_other_format(head):
        raise UnknownFormatError(source.path, description)
    if reader := _find_reader(_TRIAL_READERS, source):
        return reader.read(source, limits)
    raise UnknownFormatError(source.path, unrecognized.describe_unknown_file(head))


def _find_reader(names: Sequence[str], source: ByteSource) -> _FormatReader | None:
    for name in names:
        reader: _FormatReader = import_module(f"{__name__}.{name}")
        if reader.matches(source):
            return reader
    return None


def _copy_stream(stream: BinaryIO, spool: BinaryIO, limit: int) -> int:
    """Copy `stream` to `spool`; return its length in bytes."""
    nbytes = 0
    while chunk := stream.read(_COPY_CHUNK_BYTES):
        nbytes += len(chunk)
        if nbytes > limit:
            raise ReadError(STDIN, f"is longer than {limit} bytes: save it to a file first")
        spool.write(chunk)
    spool.flush()
    return nbytes

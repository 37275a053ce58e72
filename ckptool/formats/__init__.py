"""Location -> Checkpoint: one module per container, chosen by content, never by suffix."""

import atexit
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from msgspec.structs import replace

from ckptool.errors import ReadError, UnknownFormatError, describe_os_error
from ckptool.formats.files.shared_descriptors import SHARED_DESCRIPTORS
from ckptool.formats.files.source import ByteSource, is_directory, list_names, open_source
from ckptool.formats.files.weight_names import (
    describe_passed_over,
    is_dangling,
    is_index_name,
    list_file_names,
    list_weights,
    name_whole_file,
)
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.formats.pickle.name_origin import SOURCE_BUDGET
from ckptool.formats.quantization_config import read_declaration
from ckptool.formats.safetensors import reader as safetensors_reader
from ckptool.formats.sharded.sibling_files import (
    CHECKPOINT_PATTERN,
    MAX_LISTED,
    TRAINING_STATE_PATTERN,
    list_unread_siblings,
)
from ckptool.formats.strict_json import quote_text
from ckptool.locations import Location, RemotePath, parse_location
from ckptool.model import BYTE_DTYPES, Checkpoint, Container
from ckptool.phrases import join_limited

STDIN: Final = Path("<stdin>")
"""Path that errors and reports show for a checkpoint read from standard input."""

_MAGIC_READERS: Final = ("torch.zip_reader", "torch.tar")
_TRIAL_READERS: Final = ("torch.legacy",)
"""A pickle has no magic bytes: these readers are tried last, after all other known formats."""
_DCP_METADATA: Final = ".metadata"
_DEEPSPEED_NAME: Final = re.compile(r"zero_to_fp32\.py|.+_(?:model|optim)_states\.pt")
"""Files that DeepSpeed writes: a script that gathers the weights, and states of each rank."""
_MEGATRON_FOLDER: Final = re.compile(r"mp_rank_\d{2,5}(?:_\d{3})*")
"""Folders of Megatron, each with the file of one rank."""
_DCP_SUFFIX: Final = ".distcp"
_MAX_LEADING_BLANKS: Final = 64
"""Bytes searched for the first character that is not blank."""
_COPY_CHUNK_BYTES: Final = 1 << 20


class _FormatReader(Protocol):
    def matches(self, source: ByteSource) -> bool: ...

    def read(self, source: ByteSource, limits: Limits) -> Checkpoint: ...


def open_checkpoint(
    path: str | Location, limits: Limits = DEFAULT_LIMITS, weights_name: str = ""
) -> Checkpoint:
    """Describe the checkpoint at `path`: a file, an index of shards, or a directory with one.

    Args:
        path: the file or directory, or its URL.
        limits: bounds on the memory and time that it may take.
        weights_name: in a directory, the file or index that its framework reads; "" for the only
            one.

    Raises:
        UnknownFormatError: no reader recognises it; the message names the format if known.
        CorruptCheckpointError: the container is damaged or ambiguous.
        ReadError: it cannot be read, or a directory contains several checkpoints.
    """
    SOURCE_BUDGET.reset()
    path = parse_location(path)
    container = _open_container(path, limits, weights_name)
    checkpoint = _search_extra_state(_note_rank_files(container, limits), limits)
    if isinstance(path, RemotePath):
        return checkpoint
    declaration = read_declaration(path if path.is_dir() else path.parent, limits)
    return replace(checkpoint, quantization_declaration=declaration) if declaration else checkpoint


def _open_container(path: Location, limits: Limits, weights_name: str) -> Checkpoint:
    if is_directory(path):
        return _search_siblings(_open_directory(path, limits, weights_name), path, limits)
    if path.name == _DCP_METADATA:
        return _search_siblings(_open_dcp(path.parent, limits), path.parent, limits)
    with open_source(path) as source:
        if not _is_index(source):
            return _describe_source(source, limits)
    return _search_siblings(_open_sharded(path, limits), path.parent, limits)


def _search_siblings(checkpoint: Checkpoint, folder: Location, limits: Limits) -> Checkpoint:
    """Look for unsafe names in the other checkpoint files of a folder."""
    from ckptool.formats.sharded.sibling_pickles import add_sibling_uses

    return add_sibling_uses(checkpoint, folder, limits)


def _search_extra_state(checkpoint: Checkpoint, limits: Limits) -> Checkpoint:
    """Look for pickles in extra state, and in tensors of bytes."""
    has_bytes = bool(checkpoint.byte_storages) or any(
        any(segment.endswith("_extra_state") for segment in state.last_segments)
        or any(tensor.dtype in BYTE_DTYPES or tensor.parts for tensor in state.tensors.values())
        for state in checkpoint.states
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
        raise ReadError(STDIN, describe_os_error(error)) from error
    except ReadError as error:
        raise type(error)(STDIN, error.reason) from error
    return replace(checkpoint, path=STDIN)


def _open_directory(directory: Location, limits: Limits, weights_name: str) -> Checkpoint:
    from ckptool.formats import unrecognized

    names = list_names(directory)
    if not weights_name and (
        description := unrecognized.describe_unpacked_archive(directory.name, names)
    ):
        raise UnknownFormatError(directory, description)
    file_names = list_file_names(directory)
    weights_name = weights_name or _choose_weights(directory, names, file_names)
    if weights_name == _DCP_METADATA:
        checkpoint = _note_sibling_files(_open_dcp(directory, limits), file_names, weights_name)
    elif is_index_name(weights_name):
        checkpoint = replace(_open_sharded(directory / weights_name, limits), path=directory)
    else:
        checkpoint = _open_whole_file(directory, weights_name, file_names, limits)
    passed_over = describe_passed_over(directory, names, weights_name)
    return replace(checkpoint, skipped=(*passed_over, *checkpoint.skipped))


def _choose_weights(directory: Location, names: Sequence[str], file_names: Sequence[str]) -> str:
    """Return the file or index that a folder without a configuration stands for.

    Raises:
        ReadError: there is none, or nothing decides between several.
    """
    choices = list_weights(file_names)
    if _DCP_METADATA in names:
        choices.append(_DCP_METADATA)
    if len(choices) > 1:
        raise ReadError(directory, f"contains {' and '.join(choices)}: choose one of them")
    if choices:
        return choices[0]
    files = [name for name in file_names if re.fullmatch(CHECKPOINT_PATTERN, name)]
    if len(files) != 1:
        raise ReadError(directory, _explain_missing_index(directory, names))
    return files[0]


def _note_rank_files(checkpoint: Checkpoint, limits: Limits) -> Checkpoint:
    """Add the issue that the checkpoint is the file of one rank of several."""
    if checkpoint.files or checkpoint.container is Container.DCP:
        return checkpoint
    from ckptool.formats.rank_files import find_rank_files

    issues = find_rank_files(checkpoint, lambda path: _open_file(path, limits))
    return replace(checkpoint, faults=(*checkpoint.faults, *issues)) if issues else checkpoint


def _open_whole_file(
    directory: Location, name: str, names: Sequence[str], limits: Limits
) -> Checkpoint:
    """Describe a file of a folder, with the issue that an index of it is not loaded."""
    checkpoint = _note_sibling_files(_open_file(directory / name, limits), names, name)
    index_name = next((n for n in names if name_whole_file(n) == name), "")
    if not index_name:
        return checkpoint
    from ckptool.formats.sharded.reader import build_precedence_issue, list_shard_names

    if list_shard_names(directory / index_name, limits) == {name}:
        return checkpoint
    issue = build_precedence_issue(index_name, name)
    return replace(checkpoint, faults=(*checkpoint.faults, issue))


def _note_sibling_files(
    checkpoint: Checkpoint, names: Sequence[str], loaded_name: str
) -> Checkpoint:
    """Add a Skipped entry that lists the other checkpoint files in the same folder."""
    read_names = {checkpoint.path.name, *(file.name for file in checkpoint.files)}
    siblings = list_unread_siblings(names, read_names, "weights", loaded_name)
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
    if any(name.endswith(_DCP_SUFFIX) for name in names):
        return f"contains .distcp files but no {_DCP_METADATA}: the save was not completed"
    files = [name for name in names if re.fullmatch(CHECKPOINT_PATTERN, name)]
    if dangling := [name for name in files if is_dangling(directory / name)]:
        listed = join_limited(dangling, MAX_LISTED, quote_text)
        return f"has no weights but {listed}, a link to a file that does not exist"
    if description := _describe_foreign_files(directory, names):
        return description
    weights = [name for name in files if not re.fullmatch(TRAINING_STATE_PATTERN, name)]
    folders = (f"{name}/" for name in names if is_directory(directory / name))
    candidates = weights or list(folders) or files
    if not candidates:
        return "is a directory without a checkpoint"
    names_text = join_limited(candidates, MAX_LISTED, quote_text)
    remedy = _advise_partitioned(names)
    description = remedy or "is a directory without an index:"
    return f"{description}{' or' * bool(remedy)} choose one of {names_text}"


def _advise_partitioned(names: Sequence[str]) -> str:
    """Return what gathers the weights of a folder that are partitioned over ranks, else ""."""
    framework, remedy = "", ""
    if any(map(_DEEPSPEED_NAME.fullmatch, names)):
        framework, remedy = "DeepSpeed", "gather them with python zero_to_fp32.py FOLDER OUTPUT"
    elif len([name for name in names if _MEGATRON_FOLDER.fullmatch(name)]) > 1:
        framework, remedy = "Megatron", "merge them with Megatron's tools/checkpoint/convert.py"
    weights = "whose weights are partitioned over the ranks"
    return f"is a {framework} checkpoint, {weights}: {remedy}," if remedy else ""


def _describe_foreign_files(directory: Location, names: Sequence[str]) -> str:
    """Return what a folder without a checkpoint of PyTorch has instead; "" if that is unknown."""
    from ckptool.formats import unrecognized

    if description := unrecognized.describe_foreign_folder(names):
        return description
    if any(re.fullmatch(CHECKPOINT_PATTERN, name) for name in names):
        return ""
    name = next((n for n in sorted(names) if n.endswith(unrecognized.FOREIGN_SUFFIXES)), "")
    if not name or is_directory(directory / name):
        return ""
    with open_source(directory / name) as source:
        description = unrecognized.identify_other_format(source.read_head(unrecognized.HEAD_BYTES))
    return f"has no checkpoint; {quote_text(name)} {description}" if description else ""


def _open_file(path: Location, limits: Limits) -> Checkpoint:
    with open_source(path) as source:
        return _describe_source(source, limits)


def _describe_source(source: ByteSource, limits: Limits) -> Checkpoint:
    if source.path.suffix == _DCP_SUFFIX:
        raise UnknownFormatError(
            source.path,
            "is one file of a torch.distributed.checkpoint folder: give the folder, which has "
            f"{_DCP_METADATA}",
        )
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
    if source.path.suffix == ".py":
        raise UnknownFormatError(
            source.path, "is Python code: -m FILE.py:NAME gives a module in it"
        )
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

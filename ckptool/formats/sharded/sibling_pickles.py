"""Checkpoint of a folder -> the same with the unsafe names of pickles in the files beside it.

A folder is released, and loaded, as a whole: the checkpoint that was described may be a decoy.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError, ReadError
from ckptool.formats import unrecognized
from ckptool.formats.files.byte_strings import identify_packed_bytes, may_be_pickle
from ckptool.formats.files.source import ByteSource, list_names, open_source, path_exists
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.global_uses import find_global_uses
from ckptool.formats.pickle.nodes import PickleTreeError
from ckptool.formats.pickle.reader import scan_globals, select_unsafe
from ckptool.formats.safetensors import reader as safetensors_reader
from ckptool.formats.sharded.sibling_files import CHECKPOINT_PATTERN
from ckptool.formats.strict_json import quote_text
from ckptool.formats.torch.archive_layout import fold_case
from ckptool.formats.torch.nested_files import read_nested_file
from ckptool.formats.torch.streams import SourceSlice
from ckptool.formats.zip.archive import is_zip, read_archive
from ckptool.locations import Location
from ckptool.model import Checkpoint, Container, GlobalUse, Safety, Skipped


def add_sibling_uses(
    checkpoint: Checkpoint, folder: Location, limits: Limits, judged_names: Collection[str] = ()
) -> Checkpoint:
    """Return `checkpoint` with the unsafe names in the other files of a local folder.

    A file is known by its content, whatever its name. A checkpoint file that cannot be read is
    `unread`; an archive of another kind is `skipped`. Those of `judged_names` are left out.
    """
    if not isinstance(folder, Path):
        return checkpoint
    read_names = {checkpoint.path.name, *(file.name for file in checkpoint.files), *judged_names}
    if checkpoint.container is Container.DCP:
        read_names.add(_DCP_METADATA)
    siblings = [
        name
        for name in list_names(folder)
        if name not in read_names and not (folder / name).is_dir()
    ]
    named, others = _split_by_name(siblings)
    contents = _FolderContents(
        unread=_list_beyond(named, _MAX_SEARCHED), skipped=_list_beyond(others, _MAX_LOOKED_INTO)
    )
    for name in named[:_MAX_SEARCHED]:
        _search_named_file(folder / name, limits, contents)
    for name in others[:_MAX_LOOKED_INTO]:
        _search_other_file(folder / name, limits, contents)
    if not contents.uses and not contents.unread and not contents.skipped:
        return checkpoint
    return replace(
        checkpoint,
        globals=(*checkpoint.globals, *contents.uses),
        unread=(*checkpoint.unread, *contents.unread),
        skipped=(*checkpoint.skipped, *contents.skipped),
    )


class _FolderContents(Struct):
    """What the files beside a checkpoint hold, and what of them was not looked at."""

    uses: list[GlobalUse] = []
    unread: list[Skipped] = []
    skipped: list[Skipped] = []


def _search_named_file(path: Path, limits: Limits, contents: _FolderContents) -> None:
    """Search a file that is named like a checkpoint; one that cannot be read is unread."""
    try:
        contents.uses += _iter_unsafe_uses(path, limits)
    except ReadError as error:
        if path_exists(path):
            contents.unread.append(_describe_sibling(path.name, error.reason))


def _search_other_file(path: Path, limits: Limits, contents: _FolderContents) -> None:
    """Search a file of another name; an archive is skipped, a broken pickle is unread."""
    try:
        contents.uses += _iter_uses_by_content(path, limits)
    except _OtherArchiveError as error:
        contents.skipped.append(_describe_sibling(path.name, error.reason))
    except CorruptCheckpointError as error:
        contents.unread.append(_describe_sibling(path.name, error.reason))
    except ReadError:  # a pipe, a link to nothing: no loader reads it either
        return


class _OtherArchiveError(ReadError):
    """A file beside a checkpoint would have to be unpacked, and is no checkpoint itself."""


def _split_by_name(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names that checkpoints have, and the others."""
    named = [name for name in names if re.fullmatch(CHECKPOINT_PATTERN, name)]
    return named, [name for name in names if name not in set(named)]


def _list_beyond(names: Sequence[str], limit: int) -> list[Skipped]:
    """Return a Skipped for the names beyond `limit`, if there are any."""
    count = len(names) - limit
    if count <= 0:
        return []
    return [Skipped(f"{count} files in the same folder", f"there are more than {limit}")]


def _describe_sibling(name: str, reason: str) -> Skipped:
    return Skipped(f"{quote_text(name)}, in the same folder,", reason)


def _iter_unsafe_uses(path: Path, limits: Limits) -> Iterator[GlobalUse]:
    """Yield the unsafe names of a file of torch.save or a pickle; none of other formats.

    Raises:
        ReadError: it cannot be read.
    """
    with open_source(path) as source:
        if not safetensors_reader.matches(source) and not _is_other_format(source):
            yield from _iter_nested_uses(source, limits)


def _iter_nested_uses(source: ByteSource, limits: Limits) -> Iterator[GlobalUse]:
    """Yield the unsafe names of a file of torch.save or a pickle.

    Raises:
        CorruptCheckpointError: it is neither, or parts of it cannot be searched.
    """
    path = source.path
    try:
        nested_file = read_nested_file(SourceSlice(source, 0, source.nbytes), limits, path.name)
    except PickleTreeError as error:
        raise CorruptCheckpointError(path, str(error)) from error
    if nested_file.unread:
        part = nested_file.unread[0]
        raise CorruptCheckpointError(path, f"{part.what}: {part.reason}")
    for use in nested_file.uses:
        if use.safety is not Safety.SAFE:
            yield replace(use, at=path.name)


def _iter_uses_by_content(path: Path, limits: Limits) -> Iterator[GlobalUse]:
    """Yield the unsafe names of a file whose name says nothing; none of what is no pickle.

    Raises:
        _OtherArchiveError: it is an archive, or compressed.
        CorruptCheckpointError: it begins like a file of torch.save, and cannot be searched.
        ReadError: it cannot be opened.
    """
    with open_source(path) as source:
        head = source.read_head(unrecognized.HEAD_BYTES)
        if not head or safetensors_reader.matches(source):
            return
        if _PROTOCOL.match(head) or (is_zip(source) and _has_main_pickle(source, limits)):
            yield from _iter_nested_uses(source, limits)
            return
        if packed := identify_packed_bytes(head):
            is_array = head.startswith(_NUMPY_MAGIC)
            raise (CorruptCheckpointError if is_array else _OtherArchiveError)(path, packed)
        if may_be_pickle(head):
            data = source.read_head(_MAX_SCANNED_BYTES)
            for use in find_global_uses(select_unsafe(scan_globals(data, limits))):
                yield replace(use, at=path.name)


def _has_main_pickle(source: ByteSource, limits: Limits) -> bool:
    """Whether a zip archive has a record that torch.load looks for; True if it is damaged."""
    try:
        members = read_archive(source, limits).members
    except CorruptCheckpointError:
        return True
    return any(fold_case(member.name.rpartition("/")[2]) == "data.pkl" for member in members)


def _is_other_format(source: ByteSource) -> bool:
    return bool(unrecognized.identify_other_format(source.read_head(unrecognized.HEAD_BYTES)))


_DCP_METADATA: Final = ".metadata"
"""Pickle of a distributed checkpoint, which its reader has read."""
_PROTOCOL: Final = re.compile(rb"\x80[\x02-\x05]")
"""First bytes of a pickle of protocol 2 or later."""
_NUMPY_MAGIC: Final = b"\x93NUMPY"
_MAX_SCANNED_BYTES: Final = 64 << 20
_MAX_LOOKED_INTO: Final = 1000
"""Files of one folder, of names that no checkpoint has, whose first bytes are looked at."""
_MAX_SEARCHED: Final = 100
"""Files of one folder whose pickles are searched."""

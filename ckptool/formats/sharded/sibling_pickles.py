"""Checkpoint of a folder -> the same with the unsafe names of pickles in the files beside it.

A folder is released, and loaded, as a whole: the checkpoint that was described may be a decoy.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from ckptool.errors import CorruptCheckpointError, ReadError
from ckptool.formats import unrecognized
from ckptool.formats.files.source import ByteSource, open_source, path_exists
from ckptool.formats.files.weight_names import list_file_names
from ckptool.formats.limits import Limits
from ckptool.formats.pickle.tensor_rebuild import PickleTreeError
from ckptool.formats.safetensors import reader as safetensors_reader
from ckptool.formats.sharded.sibling_files import CHECKPOINT_PATTERN
from ckptool.formats.strict_json import quote_text
from ckptool.formats.torch.nested_files import read_nested_file
from ckptool.formats.torch.streams import SourceSlice
from ckptool.locations import Location
from ckptool.model import Checkpoint, GlobalUse, Safety, Skipped


def add_sibling_uses(checkpoint: Checkpoint, folder: Location, limits: Limits) -> Checkpoint:
    """Return `checkpoint` with the unsafe names in the other checkpoint files of a local folder.

    Those that cannot be read are `unread`.
    """
    if not isinstance(folder, Path):
        return checkpoint
    read_names = {checkpoint.path.name, *(file.name for file in checkpoint.files)}
    siblings = [
        name
        for name in list_file_names(folder)
        if name not in read_names and re.fullmatch(CHECKPOINT_PATTERN, name)
    ]
    uses: list[GlobalUse] = []
    unread: list[Skipped] = []
    for name in siblings[:_MAX_SEARCHED]:
        try:
            uses += _iter_unsafe_uses(folder / name, limits)
        except ReadError as error:
            if path_exists(folder / name):
                unread.append(Skipped(f"{quote_text(name)}, in the same folder,", error.reason))
    if len(siblings) > _MAX_SEARCHED:
        count = len(siblings) - _MAX_SEARCHED
        unread.append(
            Skipped(f"{count} files in the same folder", f"there are more than {_MAX_SEARCHED}")
        )
    if not uses and not unread:
        return checkpoint
    return replace(
        checkpoint, globals=(*checkpoint.globals, *uses), unread=(*checkpoint.unread, *unread)
    )


def _iter_unsafe_uses(path: Path, limits: Limits) -> Iterator[GlobalUse]:
    """Yield the unsafe names of a file of torch.save or a pickle; none of other formats.

    Raises:
        ReadError: it cannot be read.
    """
    with open_source(path) as source:
        if safetensors_reader.matches(source) or _is_other_format(source):
            return
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


def _is_other_format(source: ByteSource) -> bool:
    return bool(unrecognized.identify_other_format(source.read_head(unrecognized.HEAD_BYTES)))


_MAX_SEARCHED: Final = 100
"""Files of one folder whose pickles are searched."""

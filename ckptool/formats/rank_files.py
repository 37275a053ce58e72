"""Checkpoint of one file -> the files beside it that other ranks of the same run wrote."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ckptool.errors import CkptoolError, ReadError
from ckptool.formats.files.source import list_names, open_source
from ckptool.formats.strict_json import quote_text
from ckptool.locations import Location
from ckptool.model import (
    Checkpoint,
    ContainerIssue,
    IssueKind,
    StorageInfo,
    TensorInfo,
    all_tensors,
)
from ckptool.phrases import join_limited

_RANK: Final = re.compile(r"(?:^consolidated\.|rank[-_.]?)(?P<rank>\d{1,5})(?=[-_.]|$)")
"""A rank in the names that Meta's, DeepSpeed's and hand-written loops give: consolidated.00.pth,
mp_rank_00_model_states.pt, zero_pp_rank_1_mp_rank_00_optim_states.pt, model_rank0.pt."""
_FOLDER_RANK: Final = re.compile(r"^mp_rank_(?P<rank>\d{2,5})(?=(?:_\d{3})*$)")
"""The same in folders of Megatron, each with one model_optim_rng.pt: mp_rank_00, mp_rank_01_003."""
_MAX_LISTED: Final = 3
_MAX_COMPARED_NBYTES: Final = 64 << 20
"""Bytes of tensors up to which two files of one run are compared."""

OTHER_TENSORS: Final = "each contains other tensors"
"""What is said of files that have no key in common with another, or not all of its keys."""

ReadCheckpoint = Callable[[Location], Checkpoint]


def find_rank_files(
    checkpoint: Checkpoint, read_checkpoint: ReadCheckpoint
) -> tuple[ContainerIssue, ...]:
    """Return the issue that the file has a part of what several ranks saved; () if it has none.

    Names say which files belong together, and contents what each has: files of equal tensors are
    copies that every rank saved. Remote folders are not listed.
    """
    path = checkpoint.path
    if not isinstance(path, Path):
        return ()
    others = _list_other_ranks(_RANK, path) or [
        f"{name}/{path.name}"
        for name in _list_other_ranks(_FOLDER_RANK, path.absolute().parent)
        if (path.absolute().parent.parent / name / path.name).exists()
    ]
    if not others:
        return ()
    folder = path.parent if "/" not in others[0] else path.absolute().parent.parent
    content = _compare_contents(checkpoint, folder / others[0], read_checkpoint)
    if not content:
        return ()
    facts = {
        "count": str(len(others) + 1),
        "others": join_limited(others, _MAX_LISTED, quote_text),
        "content": content,
        "names": "\n".join(sorted([path.name, *others])) if "/" not in others[0] else "",
    }
    return (ContainerIssue(IssueKind.RANK_FILE, path.name, facts),)


def _list_other_ranks(pattern: re.Pattern[str], path: Path) -> list[str]:
    """Return the names beside `path` that differ from its own in the number of one rank alone.

    Ranks are counted from 0: without that of rank 0, the numbers are something else.
    """
    matches = list(pattern.finditer(path.name))
    if not matches:
        return []
    try:
        names = list_names(path.parent)
    except ReadError:
        return []
    for match in matches:
        before, after = path.name[: match.start("rank")], path.name[match.end("rank") :]
        same_run = re.compile(rf"{re.escape(before)}(\d{{1,5}}){re.escape(after)}", re.ASCII)
        ranks = {name: int(number[1]) for name in names if (number := same_run.fullmatch(name))}
        if len(ranks) > 1 and 0 in ranks.values():
            return [name for name in ranks if name != path.name]
    return []


def _compare_contents(
    checkpoint: Checkpoint, other_path: Path, read_checkpoint: ReadCheckpoint
) -> str:
    """Return what the file has of the whole, by the file of another rank; "" if all of it."""
    unknown = "each may contain some of the tensors, or a slice of each"
    tensors = all_tensors(checkpoint)
    try:
        other_tensors = all_tensors(read_checkpoint(other_path))
        if any(tensor.wrapper.startswith("torch.distributed.") for tensor in tensors.values()):
            return "each contains one rank's shard of each tensor"
        if tensors.keys() != other_tensors.keys():
            return OTHER_TENSORS
        if any(tensor.shape != other_tensors[key].shape for key, tensor in tensors.items()):
            return "each contains a slice of the tensors, and their shapes differ"
        pairs = [(tensor, other_tensors[key]) for key, tensor in tensors.items()]
        is_equal = _have_equal_values(pairs)
    except CkptoolError:
        return unknown
    if is_equal is None:
        return unknown
    return "" if is_equal else "each contains a slice of the tensors, or was trained on its own"


def _have_equal_values(pairs: list[tuple[TensorInfo, TensorInfo]]) -> bool | None:
    """Whether the tensors of each pair are equal, by their storages; None if that is unknown.

    Unknown is what is compressed, and what is larger than is compared. A storage that several
    tensors share is read once.
    """
    if any(_describe_form(tensor) != _describe_form(other) for tensor, other in pairs):
        return False
    storages = {
        (storage.key, other_storage.key): (storage, other_storage)
        for tensor, other in pairs
        for storage, other_storage in zip(
            _iter_storages(tensor), _iter_storages(other), strict=True
        )
    }
    if any(storage.span is None for pair in storages.values() for storage in pair):
        return None
    if sum(storage.nbytes for storage, _ in storages.values()) > _MAX_COMPARED_NBYTES:
        return None
    return all(_read_bytes(storage) == _read_bytes(other) for storage, other in storages.values())


def _describe_form(tensor: TensorInfo) -> tuple[object, ...]:
    """Return what decides which elements of its storages a tensor has."""
    parts = tuple(_describe_form(part.tensor) for part in tensor.parts)
    own = tensor.dtype, tensor.layout, tensor.shape, tensor.stride, tensor.storage_offset
    return (*own, tensor.storage is None, parts)


def _iter_storages(tensor: TensorInfo) -> Iterator[StorageInfo]:
    if tensor.storage is not None:
        yield tensor.storage
    for part in tensor.parts:
        yield from _iter_storages(part.tensor)


def _read_bytes(storage: StorageInfo) -> bytes:
    if storage.span is None:
        return b""
    with open_source(storage.span.path) as source:
        return source.read(storage.span.offset, storage.span.nbytes)

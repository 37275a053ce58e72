"""Pairs of TensorInfos -> ValueDifferences: streamed in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool.formats.files.source import is_shared_file
from ckptool.locations import Location
from ckptool.model import TensorInfo
from ckptool.values import elements, equality
from ckptool.values.batches.batch_runner import Batch, BatchRunner, open_process_runner
from ckptool.values.batches.work_batches import split_pair
from ckptool.values.difference.sums import (
    DifferenceSums,
    Tolerances,
    ValueDifference,
    finalize_difference,
)
from ckptool.values.numbers import NUMBER_DTYPES
from ckptool.values.sign_views import is_sign_view

if TYPE_CHECKING:
    from ckptool.values.difference.block_sums import BlockMeasurer

__all__ = ["Tolerances", "ValueDifference", "measure_many", "unmeasurable_reason"]

_TASK_ELEMENTS: Final = 1 << 22
"""Elements per task: contiguous tensors are split at this size, small ones grouped up to it."""
_TASK_PIECES: Final = 256
"""Maximum number of tensors, or pieces of tensors, of one task."""

_MIN_PROCESS_ELEMENTS: Final = 1 << 27
"""Elements in all for which processes are started: a second of work for one of them."""

TensorPair = tuple[TensorInfo, TensorInfo]


class _PairPiece(Struct, frozen=True):
    position: int
    old: TensorInfo
    new: TensorInfo
    tolerances: Tolerances


def unmeasurable_reason(old: TensorInfo, new: TensorInfo) -> str:
    """Return why the difference of two tensors cannot be measured; "" if it can."""
    if old.shape != new.shape:
        return "the shapes differ"
    for tensor in (old, new):
        if tensor.layout not in {"strided", "chunked"} and not is_sign_view(tensor):
            return f"it is laid out as {tensor.layout}"
        if tensor.dtype not in NUMBER_DTYPES:
            return f"elements of dtype {tensor.dtype} are packed or quantised"
        if reason := elements.unreadable_reason(tensor):
            return reason
    return ""


def measure_many(
    pairs: Iterable[TensorPair], tolerances: Tolerances, runner: BatchRunner | None = None
) -> list[ValueDifference]:
    """Return the ValueDifference of each pair, in order; `unmeasurable_reason` of each must be "".

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    pair_list = list(pairs)
    sums_by_pair: list[list[DifferenceSums]] = [[] for _ in pair_list]
    batches = _batch_pairs(pair_list, tolerances)
    open_runner = open_process_runner if _is_processable(pair_list) else nullcontext
    with open_runner(runner or BatchRunner()) as open_batch_runner:
        for pieces, sums in open_batch_runner.map_batches(_measure_batch, batches):
            for piece, piece_sums in zip(pieces, sums, strict=True):
                sums_by_pair[piece.position].append(piece_sums)
    return [
        finalize_difference(sums, dtypes_differ=old.dtype != new.dtype)
        for sums, (old, new) in zip(sums_by_pair, pair_list, strict=True)
    ]


def _is_processable(pairs: Sequence[TensorPair]) -> bool:
    """Whether processes are faster than threads by more than their start, and find the bytes."""
    if sum(old.numel for old, _ in pairs) < _MIN_PROCESS_ELEMENTS:
        return False
    paths = {path for pair in pairs for tensor in pair for path in _iter_paths(tensor)}
    return all(map(is_shared_file, paths))


def _iter_paths(tensor: TensorInfo) -> Iterator[Location]:
    if tensor.storage is not None and tensor.storage.span is not None:
        yield tensor.storage.span.path
    for part in tensor.parts:
        yield from _iter_paths(part.tensor)


def _batch_pairs(
    pairs: Sequence[TensorPair], tolerances: Tolerances
) -> Iterator[Batch[_PairPiece]]:
    batch: list[_PairPiece] = []
    element_count = nbytes = 0
    for position, pair in enumerate(pairs):
        for old, new in split_pair(*pair, _TASK_ELEMENTS):
            batch.append(_PairPiece(position, old, new, tolerances))
            element_count += old.numel
            nbytes += old.nbytes
            if element_count >= _TASK_ELEMENTS or len(batch) >= _TASK_PIECES:
                yield nbytes, batch
                batch, element_count, nbytes = [], 0, 0
    if batch:
        yield nbytes, batch


def _measure_batch(folder: Path, pieces: Sequence[_PairPiece]) -> list[DifferenceSums]:
    from ckptool.values.difference.block_sums import BlockMeasurer  # what is equal needs no numpy

    measurer = BlockMeasurer()
    with elements.OpenFiles(folder) as files:
        return [_measure_piece(piece, files, measurer) for piece in pieces]


def _measure_piece(
    piece: _PairPiece, files: elements.OpenFiles, measurer: "BlockMeasurer"
) -> DifferenceSums:
    old, new = piece.old, piece.new
    sums = DifferenceSums()
    for blocks in equality.iter_aligned_blocks(old, new, measurer.block_elements, files):
        sums += measurer.measure_blocks(*blocks, old.dtype, new.dtype, piece.tolerances)
    return sums

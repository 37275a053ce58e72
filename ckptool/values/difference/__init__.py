"""Pairs of TensorInfos -> ValueDifferences: streamed in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool.model import TensorInfo
from ckptool.values import elements, equality
from ckptool.values.batch_runner import Batch, BatchRunner
from ckptool.values.difference.sums import (
    DifferenceSums,
    Tolerances,
    ValueDifference,
    finalize_difference,
)
from ckptool.values.numbers import NUMBER_DTYPES
from ckptool.values.sign_views import is_sign_view
from ckptool.values.work_batches import split_pair

if TYPE_CHECKING:
    from ckptool.values.difference.block_sums import BlockMeasurer

__all__ = ["Tolerances", "ValueDifference", "measure_many", "unmeasurable_reason"]

_TASK_ELEMENTS: Final = 1 << 22
"""Elements per task: contiguous tensors are split at this size, small ones grouped up to it."""
_TASK_PIECES: Final = 256
"""Maximum number of tensors, or pieces of tensors, of one task."""

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
    for pieces, sums in (runner or BatchRunner()).map_batches(_measure_batch, batches):
        for piece, piece_sums in zip(pieces, sums, strict=True):
            sums_by_pair[piece.position].append(piece_sums)
    return [
        finalize_difference(sums, dtypes_differ=old.dtype != new.dtype)
        for sums, (old, new) in zip(sums_by_pair, pair_list, strict=True)
    ]


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

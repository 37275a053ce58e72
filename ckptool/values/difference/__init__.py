"""Pairs of TensorInfos -> ValueDifferences: streamed in bounded memory, with torch if it pays."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckptool.model import TensorInfo
from ckptool.values import elements, equality
from ckptool.values.batch_runner import Batch, BatchRunner
from ckptool.values.difference import pure_python, with_torch
from ckptool.values.difference.sums import (
    DifferenceSums,
    Tolerances,
    ValueDifference,
    finalize_difference,
)
from ckptool.values.numbers import can_decode
from ckptool.values.sign_views import is_sign_view
from ckptool.values.work_batches import split_pair

__all__ = ["Tolerances", "ValueDifference", "measure_many", "unmeasurable_reason"]

_TASK_ELEMENTS: Final = 1 << 22
"""Elements per task: contiguous tensors are split at this size, small ones grouped up to it."""
_TASK_PIECES: Final = 256
"""Maximum number of tensors, or pieces of tensors, of one task."""

TensorPair = tuple[TensorInfo, TensorInfo]
_MeasureBlocks = Callable[[bytearray, bytearray, str, str, Tolerances], DifferenceSums]


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
        if tensor.dtype not in with_torch.MEASURED_DTYPES:
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
    task = _measure_in_python if _is_quick_in_python(pair_list) else _measure_with_torch
    for pieces, sums in (runner or BatchRunner()).map_batches(task, batches):
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


def _is_quick_in_python(pairs: Sequence[TensorPair]) -> bool:
    """Whether measuring the pairs takes pure Python no longer than importing torch would."""
    return (
        "torch" not in sys.modules
        and sum(old.numel for old, _ in pairs) <= pure_python.MAX_ELEMENTS
        and all(old.dtype == new.dtype and can_decode(old.dtype) for old, new in pairs)
    )


def _measure_in_python(folder: Path, pieces: Sequence[_PairPiece]) -> list[DifferenceSums]:
    return _measure_batch(folder, pieces, pure_python.measure_blocks, pure_python.BLOCK_ELEMENTS)


def _measure_with_torch(folder: Path, pieces: Sequence[_PairPiece]) -> list[DifferenceSums]:
    with with_torch.single_threaded():
        measure_blocks = with_torch.BlockMeasurer().measure_blocks
        return _measure_batch(folder, pieces, measure_blocks, with_torch.BLOCK_ELEMENTS)


def _measure_batch(
    folder: Path, pieces: Sequence[_PairPiece], measure_blocks: _MeasureBlocks, block_elements: int
) -> list[DifferenceSums]:
    with elements.OpenFiles(folder) as files:
        return [_measure_piece(piece, files, measure_blocks, block_elements) for piece in pieces]


def _measure_piece(
    piece: _PairPiece,
    files: elements.OpenFiles,
    measure_blocks: _MeasureBlocks,
    block_elements: int,
) -> DifferenceSums:
    old, new = piece.old, piece.new
    sums = DifferenceSums()
    for blocks in equality.iter_aligned_blocks(old, new, block_elements, files):
        sums += measure_blocks(*blocks, old.dtype, new.dtype, piece.tolerances)
    return sums

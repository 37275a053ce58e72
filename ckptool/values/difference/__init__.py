"""Pairs of TensorInfos -> ValueDifferences: streamed in bounded memory, with torch if it pays."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckptool.model import DTYPE_BITS, TensorInfo
from ckptool.values import elements, equality
from ckptool.values.batch_runner import Batch, BatchRunner
from ckptool.values.difference import pure_python, with_torch
from ckptool.values.difference.import_budget import TORCH_IMPORT_BUDGET
from ckptool.values.difference.sums import (
    DifferenceSums,
    Tolerances,
    ValueDifference,
    finalize_difference,
)
from ckptool.values.numbers import can_decode
from ckptool.values.work_batches import split_pair

__all__ = ["Tolerances", "ValueDifference", "measure_many", "unmeasurable_reason"]

_BLOCK_ELEMENTS: Final = 1 << 15
"""Elements of each side in memory at once: below torch's threshold for using several threads, and
small enough for the CPU cache."""
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
        if tensor.layout not in {"strided", "chunked"}:
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
    return [_measure_piece(piece, folder) for piece in pieces]


def _measure_piece(piece: _PairPiece, folder: Path) -> DifferenceSums:
    old, new = piece.old, piece.new
    sums = DifferenceSums()
    for old_block, new_block in equality.iter_aligned_blocks(old, new, _BLOCK_ELEMENTS, folder):
        measure_blocks = _choose_backend(old_block, new_block, old.dtype, new.dtype)
        sums += measure_blocks(old_block, new_block, old.dtype, new.dtype, piece.tolerances)
    return sums


_MeasureBlocks = Callable[[bytes, bytes, str, str, Tolerances], DifferenceSums]


def _choose_backend(
    old_block: bytes, new_block: bytes, old_dtype: str, new_dtype: str
) -> _MeasureBlocks:
    """Return the backend: pure Python while it costs less than the import of torch would."""
    if old_dtype != new_dtype or not can_decode(old_dtype):
        return with_torch.measure_blocks
    seconds = pure_python.estimate_seconds(
        old_block, new_block, len(old_block) * 8 // DTYPE_BITS[old_dtype]
    )
    return (
        pure_python.measure_blocks
        if TORCH_IMPORT_BUDGET.try_spend(seconds)
        else with_torch.measure_blocks
    )

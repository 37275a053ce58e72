"""Many tensors -> their TensorStatistics, in threads; small ones of one dtype and size together.

A call of numpy takes a microsecond, whatever the size: for four elements a hundred times as long as
reading them. Small tensors become the rows of one array, and a figure of all of them is one call.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckptool.model import Span, TensorInfo
from ckptool.values.batches.batch_runner import JOBS, BatchRunner
from ckptool.values.elements import OpenFiles
from ckptool.values.numbers import HALF_DTYPES, NUMBER_DTYPES
from ckptool.values.statistics import (
    TensorStatistics,
    compute_statistics,
)

if TYPE_CHECKING:
    from ckptool.values.number_arrays import NumberArray

_MAX_ROW_NBYTES: Final = 1 << 14
"""Bytes of a tensor up to which the calls take longer than its elements."""
_MAX_BLOCK_NBYTES: Final = 1 << 19
_MAX_ROWS: Final = 1 << 13
_MIN_ROWS: Final = 8

_HALF_SETS: Final = {
    fits: frozenset(name for name, is_exact in zip(HALF_DTYPES, fits, strict=True) if is_exact)
    for fits in product((False, True), repeat=len(HALF_DTYPES))
}
"""Whether bfloat16 and float16 represent all values exactly -> `exact_half_dtypes`."""

_Block = Sequence[tuple[int, TensorInfo, Span | None]]
"""(index, tensor, its span): one tensor, or small ones that are alike, in the file's order."""


def compute_statistics_many(
    tensors: Iterable[TensorInfo],
) -> list[TensorStatistics | None]:
    """Return `compute_statistics` of each tensor, in order, None as there; `JOBS` threads.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    tensor_list = list(tensors)
    results: list[TensorStatistics | None] = [None] * len(tensor_list)
    batches = ((len(block) * block[0][1].nbytes, block) for block in _iter_blocks(tensor_list))
    for block, block_statistics in BatchRunner(JOBS).map_batches(_compute_block, batches):
        for (index, *_), statistics in zip(block, block_statistics, strict=True):
            results[index] = statistics
    return results


def _iter_blocks(tensors: Sequence[TensorInfo]) -> Iterator[_Block]:
    """Yield blocks in which each tensor is once."""
    alike: dict[tuple[object, str, int], list[tuple[int, TensorInfo, Span]]] = {}
    for index, tensor in enumerate(tensors):
        span = _find_small_span(tensor)
        if span is None:
            yield [(index, tensor, None)]
        else:
            key = (span.path, tensor.dtype, span.nbytes)
            alike.setdefault(key, []).append((index, tensor, span))
    for (_, _, nbytes), members in alike.items():
        members.sort(key=lambda member: member[2].offset)
        count = min(_MAX_ROWS, _MAX_BLOCK_NBYTES // nbytes)
        for start in range(0, len(members), count):
            block = members[start : start + count]
            yield block


def _find_small_span(tensor: TensorInfo) -> Span | None:
    """Return the span of a tensor that can be a row: small, plain, and contiguous in its file."""
    if tensor.parts or tensor.dtype.startswith("complex") or tensor.dtype not in NUMBER_DTYPES:
        return None
    span = tensor.span
    return span if span is not None and 0 < span.nbytes <= _MAX_ROW_NBYTES else None


def _compute_block(folder: Path, block: _Block) -> list[TensorStatistics | None]:
    from ckptool.values.number_arrays import view_numbers

    tensors = [tensor for _, tensor, _ in block]
    spans = [span for *_, span in block if span is not None]
    if len(spans) < _MIN_ROWS:
        return [compute_statistics(tensor) for tensor in tensors]
    dtype = tensors[0].dtype
    rows = view_numbers(_read_rows(spans, folder), dtype).reshape(len(spans), -1)
    return [
        statistics or compute_statistics(tensor)
        for statistics, tensor in zip(_compute_rows(rows, dtype), tensors, strict=True)
    ]


def _read_rows(spans: Sequence[Span], folder: Path) -> bytes:
    """Return the bytes of spans of one file, one after the other."""
    with OpenFiles(folder) as files:
        return b"".join(map(files.read_span, spans))


def _compute_rows(numbers: "NumberArray", dtype: str) -> list[TensorStatistics | None]:
    """Return the statistics of each row; None for one with an element that is not finite.

    Args:
        numbers: real, of shape [tensors, elements].
        dtype: of the elements in the file.
    """
    import numpy as np

    from ckptool.values.number_arrays import (
        compute_magnitudes,
        find_smallest_normal,
        fits_dtype,
        to_comparable_reals,
    )

    with np.errstate(all="ignore"):
        reals = to_comparable_reals(numbers)
        lowest, highest = reals.min(axis=1, keepdims=True), reals.max(axis=1, keepdims=True)
        has_two_values = ((reals == lowest) | (reals == highest)).all(axis=1)
        exact_halves = [
            fits_dtype(reals, name).all(axis=1).tolist()
            if dtype in {"float32", "float64"}
            else [False] * len(reals)
            for name in HALF_DTYPES
        ]
        magnitudes = compute_magnitudes(reals)
        magnitudes[magnitudes == 0] = inf
        columns = (
            np.isfinite(reals).all(axis=1),
            lowest[:, 0].astype(np.float64),
            highest[:, 0].astype(np.float64),
            magnitudes.min(axis=1),
            np.count_nonzero(magnitudes < find_smallest_normal(dtype), axis=1),
            has_two_values,
        )
    count = reals.shape[1]
    return [
        TensorStatistics(
            count, 0, 0, -1, minimum, maximum, magnitude, denormals,
            _HALF_SETS[is_bfloat16, is_float16],
            ((minimum,) if minimum == maximum else (minimum, maximum)) if has_two else None,
        )
        if is_finite
        else None
        for (
            is_finite, minimum, maximum, magnitude, denormals, has_two,
            is_bfloat16, is_float16,
        ) in zip(*(column.tolist() for column in columns), *exact_halves, strict=True)
    ]  # fmt: skip

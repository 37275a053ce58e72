"""Many tensors -> their TensorStatistics, in threads; small ones of one dtype and size together.

A call of torch takes microseconds, whatever the size: for four elements a thousand times as long as
reading them. Small tensors become the rows of one tensor, and a figure of all of them is one call.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import inf
from typing import TYPE_CHECKING, Final

from ckptool.model import Span, TensorInfo
from ckptool.values.elements import OpenFiles
from ckptool.values.progress import get_byte_counter
from ckptool.values.statistics import (
    HALF_DTYPES,
    TensorStatistics,
    compute_statistics,
    is_computable_dtype,
    view_numbers,
)

if TYPE_CHECKING:
    from torch import Tensor

_JOBS: Final = min(8, os.cpu_count() or 1)
_MAX_ROW_NBYTES: Final = 1 << 14
"""Bytes of a tensor up to which torch's calls take longer than its elements."""
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
    tensors: Iterable[TensorInfo], jobs: int = _JOBS
) -> list[TensorStatistics | None]:
    """Return `compute_statistics` of each tensor, in order, using `jobs` threads.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    tensor_list = list(tensors)
    results: list[TensorStatistics | None] = [None] * len(tensor_list)
    count_bytes = get_byte_counter()
    # One torch thread per worker thread: more would oversubscribe the cores.
    previous_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            blocks = list(_iter_blocks(tensor_list))
            for block, statistics in zip(blocks, pool.map(_compute_block, blocks), strict=True):
                count_bytes(len(block) * block[0][1].nbytes)
                for (index, *_), result in zip(block, statistics, strict=True):
                    results[index] = result
    finally:
        torch.set_num_threads(previous_threads)
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
    if tensor.parts or tensor.dtype.startswith("complex") or not is_computable_dtype(tensor.dtype):
        return None
    span = tensor.span
    return span if span is not None and 0 < span.nbytes <= _MAX_ROW_NBYTES else None


def _compute_block(block: _Block) -> list[TensorStatistics | None]:
    tensors = [tensor for _, tensor, _ in block]
    spans = [span for *_, span in block if span is not None]
    if len(spans) < _MIN_ROWS:
        return [compute_statistics(tensor) for tensor in tensors]
    dtype = tensors[0].dtype
    rows = _compute_rows(view_numbers(_read_rows(spans), dtype).view(len(spans), -1), dtype)
    return [row or compute_statistics(tensor) for row, tensor in zip(rows, tensors, strict=True)]


def _read_rows(spans: Sequence[Span]) -> bytearray:
    """Return the bytes of spans of one file, one after the other."""
    with OpenFiles() as files:
        return bytearray(b"".join(map(files.read_span, spans)))


def _compute_rows(numbers: "Tensor", dtype_name: str) -> list[TensorStatistics | None]:
    """Return the statistics of each row; None for one with an element that is not finite.

    Args:
        numbers: of shape [tensors, elements], overwritten.
        dtype_name: of the elements in the file.
    """
    import torch

    dtype: torch.dtype = getattr(torch, dtype_name)
    exact = numbers.double()
    lowest, highest = (bounds[:, None] for bounds in numbers.aminmax(dim=1))
    has_two_values = ((numbers == lowest) | (numbers == highest)).all(1)
    means = exact.mean(1, keepdim=True)
    magnitudes = exact.abs()
    magnitudes[magnitudes == 0] = inf
    smallest_normal = torch.finfo(dtype).tiny if dtype.is_floating_point else 0.0
    exact_halves = [
        (numbers.to(getattr(torch, name)).to(numbers.dtype) == numbers).all(1).tolist()
        if dtype in {torch.float32, torch.float64}
        else [False] * len(numbers)
        for name in HALF_DTYPES
    ]
    columns = (
        exact.isfinite().all(1),
        lowest[:, 0].double(),
        highest[:, 0].double(),
        means[:, 0],
        exact.sub_(means).square_().mean(1),  # in place: `numbers` is not used from here on
        magnitudes.amin(1),
        (magnitudes < smallest_normal).sum(1),
        has_two_values,
    )
    count = numbers.shape[1]
    return [
        TensorStatistics(
            count, 0, 0, -1, minimum, maximum, mean, variance, magnitude, denormals,
            _HALF_SETS[is_bfloat16, is_float16],
            ((minimum,) if minimum == maximum else (minimum, maximum)) if has_two else None,
        )
        if is_finite
        else None
        for (
            is_finite, minimum, maximum, mean, variance, magnitude, denormals, has_two,
            is_bfloat16, is_float16,
        ) in zip(*(column.tolist() for column in columns), *exact_halves, strict=True)
    ]  # fmt: skip

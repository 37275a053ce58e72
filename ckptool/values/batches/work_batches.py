"""Cut the bytes of tensors into pieces, and group small pieces into batches of work."""

from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from msgspec.structs import replace

from ckptool.model import DTYPE_BITS, Span, TensorInfo
from ckptool.values.batches.batch_runner import Batch
from ckptool.values.elements import contiguous_span, needs_byteswap, unwrap_single_chunk
from ckptool.values.strides import compute_steps

TASK_NBYTES: Final = 32 << 20
"""Bytes per task: contiguous tensors are split at this size, small ones grouped up to it."""


_TASK_ITEMS: Final = 1024
"""Maximum number of tensors, or pieces of tensors, of one task."""


_T = TypeVar("_T")


def split_pair(
    a: TensorInfo, b: TensorInfo, element_count: int
) -> Iterator[tuple[TensorInfo, TensorInfo]]:
    """Split two tensors of one shape into pairs of `element_count` elements, if contiguous."""
    first, second = unwrap_single_chunk(a), unwrap_single_chunk(b)
    is_sliceable = (
        first.is_contiguous
        and second.is_contiguous
        and contiguous_span(first)
        and contiguous_span(second)
    )
    if not (is_sliceable or find_matching_spans(first, second)):
        yield a, b
        return
    for start in range(0, first.numel, element_count):
        count = min(element_count, first.numel - start)
        yield _slice_elements(first, start, count), _slice_elements(second, start, count)


def _slice_elements(tensor: TensorInfo, start: int, count: int) -> TensorInfo:
    """Return a slice of a contiguous tensor's elements as a 1-d tensor, in storage order."""
    offset = tensor.storage_offset + start
    return replace(tensor, shape=(count,), stride=(1,), storage_offset=offset)


def find_matching_spans(a: TensorInfo, b: TensorInfo) -> tuple[Span, Span] | None:
    """Return the spans of both tensors if contiguous, with elements in the same order; or None."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return None
    if a.parts or b.parts:
        a, b = unwrap_single_chunk(a), unwrap_single_chunk(b)
    if DTYPE_BITS.get(a.dtype, 1) % 8 == 0 and (first := a.span) and (second := b.span):
        return first, second  # in C order and little-endian, as nearly all are
    if _element_order(a) != _element_order(b):
        return None
    first_span, second_span = contiguous_span(a), contiguous_span(b)
    return (first_span, second_span) if first_span and second_span else None


def find_digestible_span(tensor: TensorInfo) -> Span | None:
    """Return the span of the elements if its bytes are what is digested, in order; or None."""
    plain_tensor = unwrap_single_chunk(tensor)
    return (
        contiguous_span(plain_tensor)
        if plain_tensor.is_contiguous and not needs_byteswap(plain_tensor)
        else None
    )


def _element_order(tensor: TensorInfo) -> object:
    """Return a value that is equal for tensors of one shape with elements in the same order."""
    byteswap = needs_byteswap(tensor)
    return (
        byteswap if tensor.is_contiguous else (byteswap, compute_steps(tensor.shape, tensor.stride))
    )


def group_into_batches(items: Iterable[tuple[int, _T]]) -> Iterator[Batch[_T]]:
    """Group items into batches of about _TASK_NBYTES bytes, or of at most _TASK_ITEMS items."""
    batch: list[_T] = []
    total_nbytes = 0
    for nbytes, item in items:
        batch.append(item)
        total_nbytes += nbytes
        if total_nbytes >= TASK_NBYTES or len(batch) >= _TASK_ITEMS:
            yield total_nbytes, batch
            batch, total_nbytes = [], 0
    if batch:
        yield total_nbytes, batch

"""TensorInfos -> bitwise equality and fingerprints: streamed in bounded memory, without torch."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final, TypeVar

from msgspec.structs import replace

from ckptool import content
from ckptool import elements as reading
from ckptool.elements import (
    OpenFiles,
    contiguous_span,
    has_component_tensors,
    iter_elements_from,
    needs_byteswap,
    split_span,
    unreadable_reason,
    unwrap_single_chunk,
)
from ckptool.model import DTYPE_BITS, Span, TensorInfo
from ckptool.strides import compute_steps
from ckptool.workers import JOBS, Batch, BatchRunner

TASK_NBYTES: Final = 32 << 20
"""Bytes per task: contiguous tensors are split at this size, small ones grouped up to it."""
_TASK_ITEMS: Final = 1024
"""Maximum number of tensors, or pieces of tensors, of one task."""

_T = TypeVar("_T")
_ComparisonTask = tuple[int, Span, Span] | tuple[int, TensorInfo, TensorInfo]
"""(position of a pair, spans or whole tensors to compare)."""
_DigestTask = tuple[int, Span | TensorInfo]
"""(position of a tensor, next span of it or the whole tensor to digest)."""


def are_equal(a: TensorInfo, b: TensorInfo) -> bool | None:
    """Whether two tensors have the same dtype, shape and bits.

    Returns:
        None if the elements cannot be read without torch (see `unreadable_reason`), or if the
        components of sparse or quantised tensors do not correspond.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
    """
    with OpenFiles() as files:
        return _are_equal(a, b, files)


def equal_many(
    pairs: Iterable[tuple[TensorInfo, TensorInfo]],
    jobs: int = JOBS,
    runner: BatchRunner | None = None,
) -> list[bool | None]:
    """Return `are_equal` of each pair, in order; large tensors are split into several tasks.

    Args:
        pairs: the tensors to compare.
        jobs: number of threads if there is no `runner`.
        runner: runs the tasks instead of threads.
    """
    pair_list = list(pairs)
    results: list[bool | None] = [True] * len(pair_list)
    tasks = (
        (nbytes, item)
        for position, pair in enumerate(pair_list)
        for nbytes, item in _iter_comparison_tasks(position, *pair)
        if results[position]
    )
    for items, batch_results in (runner or BatchRunner(jobs)).map_batches(
        _compare_batch, group_into_batches(tasks)
    ):
        for (position, *_), is_equal in zip(items, batch_results, strict=True):
            if results[position] and is_equal is not True:
                results[position] = is_equal
    return results


def fingerprint_tensor(tensor: TensorInfo) -> str | None:
    """Return the content fingerprint of a tensor; None if it cannot be read without torch.

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    with OpenFiles() as files:
        return _fingerprint_tensor(tensor, files)


def fingerprint_many(
    tensors: Iterable[TensorInfo], jobs: int = JOBS, runner: BatchRunner | None = None
) -> list[str | None]:
    """Return `fingerprint_tensor` of each, in order; large tensors are split into several tasks."""
    tensor_list = list(tensors)
    fingerprints: list[str | None] = [None] * len(tensor_list)
    pieces: dict[int, list[bytes]] = {}
    tasks = (
        item
        for position, tensor_info in enumerate(tensor_list)
        for item in _iter_digest_tasks(position, tensor_info)
    )
    for items, batch_digests in (runner or BatchRunner(jobs)).map_batches(
        _digest_batch, group_into_batches(tasks)
    ):
        for (position, _), digest in zip(items, batch_digests, strict=True):
            if isinstance(digest, bytes):
                pieces.setdefault(position, []).append(digest)
            else:
                fingerprints[position] = digest
    for position, digests in pieces.items():
        tensor = tensor_list[position]
        fingerprints[position] = content.combine_piece_digests(tensor.dtype, tensor.shape, digests)
    return fingerprints


def iter_aligned_blocks(
    a: TensorInfo, b: TensorInfo, element_count: int, folder: Path = Path()
) -> Iterator[tuple[bytes, bytes]]:
    """Yield blocks of `element_count` elements of two tensors of one shape, as `iter_elements`.

    Only for readable tensors (`unreadable_reason` is "") with elements of whole bytes.
    """
    with OpenFiles(folder) as files:
        first_blocks, second_blocks = (
            _iter_blocks(
                iter_elements_from(tensor, files), element_count * DTYPE_BITS[tensor.dtype] // 8
            )
            for tensor in (a, b)
        )
        yield from zip(first_blocks, second_blocks, strict=True)


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


def _are_equal(a: TensorInfo, b: TensorInfo, files: OpenFiles) -> bool | None:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if has_component_tensors(a) or has_component_tensors(b):
        return _are_components_equal(a, b, files)
    if spans := find_matching_spans(a, b):
        return _are_spans_equal(*spans, files)
    if unreadable_reason(a) or unreadable_reason(b):
        return None
    streams = (_iter_blocks(iter_elements_from(tensor, files), reading.CHUNK) for tensor in (a, b))
    blocks = zip_longest(*streams)
    return all(x == y for x, y in blocks)


def _are_components_equal(a: TensorInfo, b: TensorInfo, files: OpenFiles) -> bool | None:
    if a.layout != b.layout or [part.name for part in a.parts] != [part.name for part in b.parts]:
        return None
    component_pairs = zip(a.parts, b.parts, strict=True)
    results = [_are_equal(first.tensor, second.tensor, files) for first, second in component_pairs]
    return False if False in results else None if None in results else True


def _are_spans_equal(a: Span, b: Span, files: OpenFiles) -> bool:
    if a == b:
        return True
    chunk_pairs = zip(split_span(a, reading.CHUNK), split_span(b, reading.CHUNK), strict=True)
    return all(files.equal_spans(first, second) for first, second in chunk_pairs)


def _iter_blocks(pieces: Iterable[bytes], nbytes: int) -> Iterator[bytes]:
    """Regroup a stream of bytes into blocks of `nbytes`; the last may be shorter."""
    buffer = bytearray()
    for piece in pieces:
        if not buffer and len(piece) == nbytes:
            yield piece
            continue
        buffer += piece
        whole_nbytes = len(buffer) - len(buffer) % nbytes
        for start in range(0, whole_nbytes, nbytes):
            yield bytes(buffer[start : start + nbytes])
        del buffer[:whole_nbytes]
    if buffer:
        yield bytes(buffer)


def _slice_elements(tensor: TensorInfo, start: int, count: int) -> TensorInfo:
    """Return a slice of a contiguous tensor's elements as a 1-d tensor, in storage order."""
    offset = tensor.storage_offset + start
    return replace(tensor, shape=(count,), stride=(1,), storage_offset=offset)


def find_matching_spans(a: TensorInfo, b: TensorInfo) -> tuple[Span, Span] | None:
    """Return the spans of both tensors if contiguous, with elements in the same order; or None."""
    a, b = unwrap_single_chunk(a), unwrap_single_chunk(b)
    if (a.dtype, a.shape) != (b.dtype, b.shape) or _element_order(a) != _element_order(b):
        return None
    first_span, second_span = contiguous_span(a), contiguous_span(b)
    return (first_span, second_span) if first_span and second_span else None


def find_digestible_span(tensor: TensorInfo) -> Span | None:
    """Return the span of the elements if its bytes are what is digested, in order; or None."""
    unwrapped = unwrap_single_chunk(tensor)
    return (
        contiguous_span(unwrapped)
        if unwrapped.is_contiguous and not needs_byteswap(unwrapped)
        else None
    )


def _element_order(tensor: TensorInfo) -> object:
    """Return a value that is equal for tensors of one shape with elements in the same order."""
    byteswap = needs_byteswap(tensor)
    return (
        byteswap if tensor.is_contiguous else (byteswap, compute_steps(tensor.shape, tensor.stride))
    )


def _fingerprint_tensor(tensor: TensorInfo, files: OpenFiles) -> str | None:
    if unreadable_reason(tensor):
        return None
    return content.fingerprint_chunks(tensor.dtype, tensor.shape, _iter_content(tensor, files))


def _iter_content(tensor: TensorInfo, files: OpenFiles) -> Iterator[bytes]:
    """Yield the elements' bytes; each component is preceded by its name, dtype and shape."""
    if not has_component_tensors(tensor):
        yield from iter_elements_from(tensor, files)
        return
    for part in tensor.parts:
        yield f"{part.name} {part.tensor.dtype}{list(part.tensor.shape)}".encode()
        yield from _iter_content(part.tensor, files)


def _iter_comparison_tasks(
    position: int, a: TensorInfo, b: TensorInfo
) -> Iterator[tuple[int, _ComparisonTask]]:
    """Yield (bytes read of each tensor, task) for a pair."""
    spans = (
        None if has_component_tensors(a) or has_component_tensors(b) else find_matching_spans(a, b)
    )
    if spans is None:
        yield a.nbytes, (position, a, b)
        return
    for first, second in zip(
        split_span(spans[0], TASK_NBYTES), split_span(spans[1], TASK_NBYTES), strict=True
    ):
        yield first.nbytes, (position, first, second)


def _compare_batch(folder: Path, tasks: Sequence[_ComparisonTask]) -> list[bool | None]:
    with OpenFiles(folder) as files:
        return [_run_comparison(task, files) for task in tasks]


def _run_comparison(task: _ComparisonTask, files: OpenFiles) -> bool | None:
    match task:
        case (_, Span() as first_span, Span() as second_span):
            return _are_spans_equal(first_span, second_span, files)
        case (_, TensorInfo() as a, TensorInfo() as b):
            return _are_equal(a, b, files)
    raise AssertionError(task)


def _iter_digest_tasks(position: int, tensor: TensorInfo) -> Iterator[tuple[int, _DigestTask]]:
    """Yield (bytes read, task) for a tensor."""
    contiguous = find_digestible_span(tensor)
    if contiguous is None or tensor.nbytes <= content.PIECE:
        yield tensor.nbytes, (position, tensor)
        return
    for span in split_span(contiguous, content.PIECE):
        yield span.nbytes, (position, span)


def _digest_batch(folder: Path, tasks: Sequence[_DigestTask]) -> list[bytes | str | None]:
    """Return the digest (bytes) of each span and the fingerprint (str, None) of each tensor."""
    with OpenFiles(folder) as files:
        return [
            next(content.iter_piece_digests(files.iter_chunks(target)))
            if isinstance(target, Span)
            else _fingerprint_tensor(target, files)
            for _, target in tasks
        ]


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

"""Pairs of tensors -> equal, different, or None where they cannot be compared."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final

from ckptool.model import DTYPE_BITS, Span, TensorInfo
from ckptool.values import elements
from ckptool.values.batches.batch_runner import JOBS, BatchRunner
from ckptool.values.batches.work_batches import (
    TASK_NBYTES,
    find_digestible_span,
    find_matching_spans,
    group_into_batches,
)
from ckptool.values.elements import (
    OpenFiles,
    has_component_tensors,
    iter_elements_from,
    split_span,
    unreadable_reason,
)

_HEAD_NBYTES: Final = 1 << 14
_MAX_GAP_NBYTES: Final = 512
"""Bytes between two spans that are read with them: more than a record's headers in a .pth."""
_ComparisonTask = tuple[int, Span, Span] | tuple[int, TensorInfo, TensorInfo]
"""(position of a pair, spans or whole tensors to compare)."""


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
    """Return `are_equal` of each pair, in order, None as there; large tensors are split.

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
        for nbytes, item in _list_comparison_tasks(position, *pair)
        if results[position]
    )
    for items, batch_results in (runner or BatchRunner(jobs)).map_batches(
        _compare_batch, group_into_batches(tasks)
    ):
        for (position, *_), is_equal in zip(items, batch_results, strict=True):
            if results[position] and is_equal is not True:
                results[position] = is_equal
    return results


def iter_aligned_blocks(
    a: TensorInfo, b: TensorInfo, element_count: int, files: OpenFiles
) -> Iterator[tuple[bytearray, bytearray]]:
    """Yield blocks of `element_count` elements of two tensors of one shape, as `iter_elements`.

    Only for readable tensors (`unreadable_reason` is "") with elements of whole bytes. A block is
    valid until the next is asked for: its memory is used again.
    """
    block_nbytes = [element_count * DTYPE_BITS[tensor.dtype] // 8 for tensor in (a, b)]
    spans = find_digestible_span(a), find_digestible_span(b)
    if spans[0] and spans[1] and a.numel:
        yield from files.iter_chunk_pairs(spans[0], spans[1], *block_nbytes)
        return
    streams = (
        _iter_blocks(iter_elements_from(tensor, files), nbytes)
        for tensor, nbytes in zip((a, b), block_nbytes, strict=True)
    )
    for first_block, second_block in zip(*streams, strict=True):
        yield bytearray(first_block), bytearray(second_block)


def _are_equal(a: TensorInfo, b: TensorInfo, files: OpenFiles) -> bool | None:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if has_component_tensors(a) or has_component_tensors(b):
        return _are_components_equal(a, b, files)
    if spans := find_matching_spans(a, b):
        return _are_spans_equal(*spans, files)
    if a.is_on_meta and b.is_on_meta and a.storage and b.storage:
        return True  # there are no elements
    if unreadable_reason(a) or unreadable_reason(b):
        return None
    streams = (_iter_blocks(iter_elements_from(tensor, files), elements.CHUNK) for tensor in (a, b))
    blocks = zip_longest(*streams)
    return all(x == y for x, y in blocks)


def _are_components_equal(a: TensorInfo, b: TensorInfo, files: OpenFiles) -> bool | None:
    if a.layout != b.layout or [part.name for part in a.parts] != [part.name for part in b.parts]:
        return None
    component_pairs = zip(a.parts, b.parts, strict=True)
    results = [_are_equal(first.tensor, second.tensor, files) for first, second in component_pairs]
    return False if False in results else None if None in results else True


def _are_spans_equal(a: Span, b: Span, files: OpenFiles) -> bool:
    if a.offset == b.offset and a == b:
        return True
    if a.nbytes <= _HEAD_NBYTES:
        return files.read_span(a) == files.read_span(b)
    # A short piece first: values that differ mostly differ at once.
    if files.read_span(_cut_head(a)) != files.read_span(_cut_head(b)):
        return False
    chunk_pairs = zip(split_span(a, elements.CHUNK), split_span(b, elements.CHUNK), strict=True)
    return all(files.equal_spans(first, second) for first, second in chunk_pairs)


def _cut_head(span: Span) -> Span:
    return Span(span.path, span.offset, _HEAD_NBYTES)


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


def _list_comparison_tasks(
    position: int, a: TensorInfo, b: TensorInfo
) -> list[tuple[int, _ComparisonTask]]:
    """Return (bytes read of each tensor, task) for a pair."""
    spans = (
        None if has_component_tensors(a) or has_component_tensors(b) else find_matching_spans(a, b)
    )
    if spans is None:
        return [(a.nbytes, (position, a, b))]
    if spans[0].nbytes <= TASK_NBYTES:
        return [(spans[0].nbytes, (position, *spans))]
    pieces = zip(split_span(spans[0], TASK_NBYTES), split_span(spans[1], TASK_NBYTES), strict=True)
    return [(first.nbytes, (position, first, second)) for first, second in pieces]


def _compare_batch(folder: Path, tasks: Sequence[_ComparisonTask]) -> list[bool | None]:
    with OpenFiles(folder) as files:
        results = _compare_stretches(tasks, files)
        return results or [_run_comparison(task, files) for task in tasks]


def _compare_stretches(tasks: Sequence[_ComparisonTask], files: OpenFiles) -> list[bool | None]:
    """Compare spans that are near each other in one file, on both sides, by one read of each.

    [] if they are not.
    """
    first = _find_stretch([a for _, a, _ in tasks])
    second = _find_stretch([b for _, _, b in tasks])
    if first is None or second is None:
        return []
    first_bytes, second_bytes = files.read_span(first), files.read_span(second)
    results: list[bool | None] = []
    for _, a, b in tasks:
        assert isinstance(a, Span)
        assert isinstance(b, Span)
        start, other_start, nbytes = a.offset - first.offset, b.offset - second.offset, a.nbytes
        values = first_bytes[start : start + nbytes]
        results.append(values == second_bytes[other_start : other_start + nbytes])
    return results


def _find_stretch(spans: Sequence[Span | TensorInfo]) -> Span | None:
    """Return the stretch of a file that has all of several spans; None if that is much more."""
    head, *others = spans
    if not isinstance(head, Span) or not others:
        return None
    path, start, end, nbytes = head.path, head.offset, head.offset, 0
    for span in spans:
        if not isinstance(span, Span) or span.path is not path:
            return None
        start, end = min(start, span.offset), max(end, span.offset + span.nbytes)
        nbytes += span.nbytes
    is_dense = end - start <= min(elements.CHUNK, 2 * nbytes + len(spans) * _MAX_GAP_NBYTES)
    return Span(path, start, end - start) if is_dense else None


def _run_comparison(task: _ComparisonTask, files: OpenFiles) -> bool | None:
    match task:
        case (_, Span() as first_span, Span() as second_span):
            return _are_spans_equal(first_span, second_span, files)
        case (_, TensorInfo() as a, TensorInfo() as b):
            return _are_equal(a, b, files)
    raise AssertionError(task)

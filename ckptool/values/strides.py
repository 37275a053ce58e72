"""Sizes and strides -> bytes of a view's elements in C order, gathered from its storage."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Final, Literal

REGION: Final = 64 << 20
"""Maximum bytes of a storage in memory at once."""
WORD_CODES: Final[Mapping[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""Bytes of a machine word -> its code in the struct and array modules."""

_GAP_NBYTES: Final = 16 << 10
"""Gap between two rows, in bytes, above which one read per row is cheaper than reading all."""
_OUTPUT_NBYTES: Final = 1 << 20
"""Minimum bytes of each yielded piece, except the last."""

Steps = Sequence[tuple[int, int]]
"""(size, stride) of each dimension, outermost first."""
ReadWords = Callable[[int, int], bytes]
"""Returns words of the storage, given the first word and the number of words."""


def compute_steps(shape: Iterable[int], stride: Iterable[int]) -> Steps:
    """Return (size, stride) of the dimensions whose size is not 1."""
    return [(size, step) for size, step in zip(shape, stride, strict=True) if size != 1]


def compute_extent(steps: Steps) -> int:
    """Return the number of words from the first to the last one of the view, inclusive."""
    return 1 + sum((size - 1) * stride for size, stride in steps)


def is_dense(steps: Steps) -> bool:
    """Whether the view is a permutation of a contiguous one, as a transposed matrix is."""
    expected = 1
    for size, stride in sorted(steps, key=lambda step: step[1]):
        if stride != expected:
            return False
        expected *= size
    return True


def iter_view_bytes(read: ReadWords, steps: Steps, start: int, word_nbytes: int) -> Iterator[bytes]:
    """Yield the words of a view in C order, split anywhere, with as few reads as memory allows.

    A view with an extent above REGION whose dimensions are not in storage order is read in storage
    order and transposed in memory, so all its words must fit into memory.

    Args:
        read: returns words of the storage.
        steps: (size, stride) of each dimension, in words.
        start: first word of the view.
        word_nbytes: bytes of a word.
    """
    by_stride = sorted(range(len(steps)), key=lambda axis: -steps[axis][1])
    if compute_extent(steps) * word_nbytes <= REGION or by_stride == list(range(len(steps))):
        return _iter_gathered_bytes(read, steps, start, word_nbytes)
    gathered_bytes = b"".join(
        _iter_gathered_bytes(read, [steps[axis] for axis in by_stride], start, word_nbytes)
    )
    innermost_first = by_stride[::-1]
    dense = accumulate((steps[axis][0] for axis in innermost_first), mul, initial=1)
    dense_strides = dict(zip(innermost_first, dense, strict=False))
    transposed_steps = [(size, dense_strides[axis]) for axis, (size, _) in enumerate(steps)]
    return _join_rows(
        _iter_word_rows(
            memoryview(gathered_bytes).cast(WORD_CODES[word_nbytes]), transposed_steps, 0
        )
    )


def _iter_gathered_bytes(
    read: ReadWords, steps: Steps, start: int, word_nbytes: int
) -> Iterator[bytes]:
    """Yield the words of a view; reads are at most REGION bytes and skip large gaps."""
    rows_per_read = _rows_per_read(steps, word_nbytes)
    if rows_per_read is None:
        words = memoryview(read(start, compute_extent(steps))).cast(WORD_CODES[word_nbytes])
        yield from _join_rows(_iter_word_rows(words, steps, 0))
        return
    (count, stride), inner = steps[0], steps[1:]
    for first in range(0, count, rows_per_read):
        rows = [(min(rows_per_read, count - first), stride)] if rows_per_read > 1 else []
        yield from _iter_gathered_bytes(read, [*rows, *inner], start + first * stride, word_nbytes)


def _rows_per_read(steps: Steps, word_nbytes: int) -> int | None:
    """Return the number of outermost rows per read; None: all rows in one read."""
    if not steps:
        return None
    (_, stride), inner = steps[0], compute_extent(steps[1:])
    if (stride - inner) * word_nbytes > _GAP_NBYTES:
        return 1
    if compute_extent(steps) * word_nbytes <= REGION:
        return None
    return max(1, (REGION // word_nbytes - inner) // stride + 1) if stride else 1


def _iter_word_rows(words: memoryview, steps: Steps, start: int) -> Iterator[bytes]:
    if not steps:
        yield words[start : start + 1].tobytes()
        return
    (count, stride), inner = steps[0], steps[1:]
    if inner:
        for row in range(count):
            yield from _iter_word_rows(words, inner, start + row * stride)
    elif stride:
        yield words[start : start + (count - 1) * stride + 1 : stride].tobytes()
    else:
        yield words[start : start + 1].tobytes() * count


def _join_rows(rows: Iterable[bytes]) -> Iterator[bytes]:
    """Join rows to pieces of at least _OUTPUT_NBYTES; the last may be shorter."""
    buffer = bytearray()
    for row in rows:
        buffer += row
        if len(buffer) >= _OUTPUT_NBYTES:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer)

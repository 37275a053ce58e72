"""Sizes and strides -> bytes of a view's elements in C order, gathered from its storage."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Final, Literal

REGION: Final = 64 << 20
"""Maximum bytes of a storage in memory at once."""
WORD: Final[Mapping[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""Bytes of a machine word -> its code in the struct and array modules."""

_GAP: Final = 16 << 10
"""Gap between two rows, in bytes, above which one read per row is cheaper than reading all."""
_HANDED_ON: Final = 1 << 20
"""Minimum bytes of each yielded piece, except the last."""

Steps = Sequence[tuple[int, int]]
"""(size, stride) of each dimension, outermost first."""
Read = Callable[[int, int], bytes]
"""Returns words of the storage, given the first word and the number of words."""


def steps_of(shape: Iterable[int], stride: Iterable[int]) -> Steps:
    """Return (size, stride) of the dimensions whose size is not 1."""
    return [(size, step) for size, step in zip(shape, stride, strict=True) if size != 1]


def extent_of(steps: Steps) -> int:
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


def pick(read: Read, steps: Steps, start: int, word: int) -> Iterator[bytes]:
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
    if extent_of(steps) * word <= REGION or by_stride == list(range(len(steps))):
        return _picked(read, steps, start, word)
    held = b"".join(_picked(read, [steps[axis] for axis in by_stride], start, word))
    innermost_first = by_stride[::-1]
    dense = accumulate((steps[axis][0] for axis in innermost_first), mul, initial=1)
    within = dict(zip(innermost_first, dense, strict=False))
    turned = [(size, within[axis]) for axis, (size, _) in enumerate(steps)]
    return _joined(_rows(memoryview(held).cast(WORD[word]), turned, 0))


def _picked(read: Read, steps: Steps, start: int, word: int) -> Iterator[bytes]:
    """Yield the words of a view; reads are at most REGION bytes and skip large gaps."""
    together = _rows_together(steps, word)
    if together is None:
        cells = memoryview(read(start, extent_of(steps))).cast(WORD[word])
        yield from _joined(_rows(cells, steps, 0))
        return
    (count, stride), inner = steps[0], steps[1:]
    for first in range(0, count, together):
        rows = [(min(together, count - first), stride)] if together > 1 else []
        yield from _picked(read, [*rows, *inner], start + first * stride, word)


def _rows_together(steps: Steps, word: int) -> int | None:
    """Return the number of outermost rows per read; None: all rows in one read."""
    if not steps:
        return None
    (_, stride), inner = steps[0], extent_of(steps[1:])
    if (stride - inner) * word > _GAP:
        return 1
    if extent_of(steps) * word <= REGION:
        return None
    return max(1, (REGION // word - inner) // stride + 1) if stride else 1


def _rows(cells: memoryview, steps: Steps, start: int) -> Iterator[bytes]:
    if not steps:
        yield cells[start : start + 1].tobytes()
        return
    (count, stride), inner = steps[0], steps[1:]
    if inner:
        for row in range(count):
            yield from _rows(cells, inner, start + row * stride)
    elif stride:
        yield cells[start : start + (count - 1) * stride + 1 : stride].tobytes()
    else:
        yield cells[start : start + 1].tobytes() * count


def _joined(rows: Iterable[bytes]) -> Iterator[bytes]:
    """Join rows to pieces of at least _OUTPUT_NBYTES; the last may be shorter."""
    rest = bytearray()
    for row in rows:
        rest += row
        if len(rest) >= _HANDED_ON:
            yield bytes(rest)
            rest.clear()
    yield bytes(rest)

"""Sizes and strides -> the bytes of a view's elements, picked from what holds them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Final, Literal

REGION: Final = 64 << 20
"""Bytes held at once to pick the elements of a view from."""
WORD: Final[Mapping[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""Bytes of a machine word -> its name in the struct and array modules."""

_GAP: Final = 16 << 10
"""Bytes between two rows from which on a read for each costs less than reading all."""
_HANDED_ON: Final = 1 << 20

Steps = Sequence[tuple[int, int]]
"""(size, stride) of each dimension, outermost first."""
Read = Callable[[int, int], bytes]
"""Takes the first word and their number."""


def steps_of(shape: Iterable[int], stride: Iterable[int]) -> Steps:
    """Return size and stride of the dimensions that matter."""
    return [(size, step) for size, step in zip(shape, stride, strict=True) if size != 1]


def extent_of(steps: Steps) -> int:
    """Return how many words lie from the first to the last, both included."""
    return 1 + sum((size - 1) * stride for size, stride in steps)


def is_dense(steps: Steps) -> bool:
    """Whether it is a permutation of what is contiguous, as a transposed matrix is."""
    expected = 1
    for size, stride in sorted(steps, key=lambda step: step[1]):
        if stride != expected:
            return False
        expected *= size
    return True


def pick(read: Read, steps: Steps, start: int, word: int) -> Iterator[bytes]:
    """Yield the words of a view in C order, cut anywhere, from as few reads as memory allows.

    What is scattered over more than can be held is picked in the order that it lies in, and
    turned around afterwards: so the words themselves must be few enough to be held.

    Args:
        read: returns words of the storage.
        steps: how the view goes through them.
        start: the word that it starts from.
        word: bytes of a word.
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
    """Read as much at once as is bounded and worth it, and pick from that."""
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
    """Return how many of the outermost rows to read at once; None where it is all of them."""
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
    """Put rows together to pieces of a size that is worth handing on."""
    rest = bytearray()
    for row in rows:
        rest += row
        if len(rest) >= _HANDED_ON:
            yield bytes(rest)
            rest.clear()
    yield bytes(rest)

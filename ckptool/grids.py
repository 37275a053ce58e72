"""Shape, dtype and bytes -> Preview: a subsampled 2-d grid of a tensor's values."""

import struct
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

SIDE: Final = 64
"""Maximum rows and columns of a preview; larger dimensions are subsampled with a stride."""
_CODES: Final = {
    "float64": "d", "float32": "f", "float16": "e", "bool": "B", "uint8": "B", "int8": "b",
    "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q",
}  # fmt: skip


class Preview(Struct, frozen=True, gc=False):
    """Values of a small tensor, or of a subsample of the rows and columns of a larger one."""

    rows: tuple[tuple[float, ...], ...]
    whole: bool
    """Whether it holds every element."""


def window(shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return the subsampling stride per dimension; 0: only index 0 of the dimension is shown.

    The last two dimensions longer than 1 are the rows and columns. None for tensors of one element
    or none, which have no preview.
    """
    wide = [axis for axis, size in enumerate(shape) if size > 1][-2:]
    if not wide or 0 in shape:
        return None
    return tuple(-(-size // SIDE) if axis in wide else 0 for axis, size in enumerate(shape))


def is_small(shape: Sequence[int]) -> bool:
    """Whether a preview shows every element."""
    steps = window(shape)
    return steps is not None and _is_whole(shape, steps)


def preview(shape: Sequence[int], dtype: str, data: bytes) -> Preview | None:
    """Return the preview of a tensor.

    Args:
        shape: of the whole tensor.
        dtype: torch's name without the prefix.
        data: the elements that `preview_strides` selects, little-endian, in C order.

    Returns:
        None if the dtype cannot be decoded, or the tensor has fewer than two elements.
    """
    steps, cells = window(shape), numbers(dtype, data)
    if steps is None or cells is None:
        return None
    columns = [-(-size // step) for size, step in zip(shape, steps, strict=True) if step][-1]
    rows = tuple(cells[start : start + columns] for start in range(0, len(cells), columns))
    return Preview(rows, whole=_is_whole(shape, steps))


def numbers(dtype: str, data: bytes) -> tuple[float, ...] | None:
    """Return the elements as numbers; None if the dtype cannot be decoded without torch."""
    if dtype == "bfloat16":
        halves = struct.unpack(f"<{len(data) // 2}H", data)
        return struct.unpack(
            f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(h << 16 for h in halves))
        )
    code = _CODES.get(dtype)
    if code is None:
        return None
    return struct.unpack(f"<{len(data) // struct.calcsize(f'<{code}')}{code}", data)


def _is_whole(shape: Sequence[int], steps: Sequence[int]) -> bool:
    return all(step == 1 or size == 1 for size, step in zip(shape, steps, strict=True))

"""Shape, dtype and bytes -> Preview: a subsampled 2-d grid of a tensor's values."""

from collections.abc import Sequence
from typing import Final

from ckptool.model import Preview
from ckptool.values.numbers import decode_numbers

MAX_SIDE: Final = 64
"""Maximum rows and columns of a preview; larger dimensions are subsampled with a stride."""


def preview_strides(shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return the subsampling stride per dimension; 0: only index 0 of the dimension is shown.

    The last two dimensions longer than 1 are the rows and columns. None for tensors of one element
    or none, which have no preview.
    """
    long_axes = [axis for axis, size in enumerate(shape) if size > 1][-2:]
    if not long_axes or 0 in shape:
        return None
    return tuple(
        -(-size // MAX_SIDE) if axis in long_axes else 0 for axis, size in enumerate(shape)
    )


def fits_preview(shape: Sequence[int]) -> bool:
    """Whether a preview shows every element."""
    steps = preview_strides(shape)
    return steps is not None and _shows_every_element(shape, steps)


def build_preview(shape: Sequence[int], dtype: str, data: bytes) -> Preview | None:
    """Return the preview of a tensor.

    Args:
        shape: of the whole tensor.
        dtype: torch's name without the prefix.
        data: the elements that `preview_strides` selects, little-endian, in C order.

    Returns:
        None if the dtype cannot be decoded, or the tensor has fewer than two elements.
    """
    steps, values = preview_strides(shape), _decode(data, dtype)
    if steps is None or values is None:
        return None
    columns = [-(-size // step) for size, step in zip(shape, steps, strict=True) if step][-1]
    rows = tuple(values[start : start + columns] for start in range(0, len(values), columns))
    return Preview(rows, is_complete=_shows_every_element(shape, steps))


def _decode(data: bytes, dtype: str) -> tuple[float, ...] | None:
    return decode_numbers(data, "uint8" if dtype == "bool" else dtype)


def _shows_every_element(shape: Sequence[int], steps: Sequence[int]) -> bool:
    return all(step == 1 or size == 1 for size, step in zip(shape, steps, strict=True))

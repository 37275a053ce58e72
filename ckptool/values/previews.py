"""TensorInfos of a file -> Previews of small tensors and of those that look like masks."""

import re
from collections.abc import Iterable
from itertools import islice
from math import isfinite
from typing import Final

from msgspec.structs import replace

from ckptool.model import Kind, Preview, TensorInfo
from ckptool.values import preview_grid
from ckptool.values.elements import iter_elements, unreadable_reason

MAX_DISTINCT: Final = 7
"""Maximum number of distinct values of a tensor that is taken for a mask or index table."""
_MIN_REPEATS: Final = 4
"""Minimum average number of elements per distinct value."""
MAX_READ: Final = 400
_MAX_NBYTES: Final = 16 << 20
"""Maximum size of a tensor of which a preview is read."""
_MASK_NAME_PATTERN: Final = re.compile(
    r"mask|bias_table|position_ids|relative_position|(^|\.)tril$|triu"
)
_INTEGER_DTYPES: Final = frozenset({"bool", "uint8", "int8", "int16", "int32", "int64"})


def read_preview(tensor: TensorInfo) -> Preview | None:
    """Return the preview of `tensor`; None if it is too large, unreadable or has no preview.

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    steps = preview_grid.preview_strides(tensor.shape)
    if steps is None or tensor.layout != "strided" or tensor.nbytes > _MAX_NBYTES:
        return None
    subsampled_tensor = replace(
        tensor,
        shape=tuple(-(-n // s) for n, s in zip(tensor.shape, steps, strict=True) if s),
        stride=tuple(n * s for n, s in zip(tensor.stride, steps, strict=True) if s),
    )
    if unreadable_reason(subsampled_tensor):
        return None
    return preview_grid.build_preview(
        tensor.shape, tensor.dtype, b"".join(iter_elements(subsampled_tensor))
    )


def find_masks(tensors: Iterable[TensorInfo], limit: int) -> list[tuple[TensorInfo, Preview]]:
    """Return the first `limit` tensors that look like masks or index tables, with previews.

    A file does not record which tensors are buffers, so tensors with a few distinct values, but
    more than one, are taken for buffers. At most MAX_READ tensors are read.
    """
    candidates = islice(filter(should_preview, tensors), MAX_READ)
    previews = ((tensor, read_preview(tensor)) for tensor in candidates)
    mask_previews = (
        (tensor, tensor_preview)
        for tensor, tensor_preview in previews
        if tensor_preview is not None and looks_like_mask(tensor_preview)
    )
    return list(islice(mask_previews, limit))


def should_preview(tensor: TensorInfo) -> bool:
    """Whether `tensor` is no parameter, and is small or looks like a buffer."""
    if tensor.kind is Kind.PARAMETER:
        return False
    is_buffer = (
        tensor.kind is not None
        or tensor.dtype in _INTEGER_DTYPES
        or _MASK_NAME_PATTERN.search(tensor.key)
    )
    return preview_grid.fits_preview(tensor.shape) or bool(is_buffer)


def looks_like_mask(tensor_preview: Preview) -> bool:
    """Whether a preview repeats few values, as a mask does.

    That is several distinct values, at most MAX_DISTINCT of them finite, and at least _MIN_REPEATS
    elements per distinct value.
    """
    values = [value for row in tensor_preview.rows for value in row]
    distinct_count, finite_count = (
        len(set(values)),
        len({value for value in values if isfinite(value)}),
    )
    return (
        distinct_count > 1
        and finite_count <= MAX_DISTINCT
        and distinct_count * _MIN_REPEATS <= len(values)
    )

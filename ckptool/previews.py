"""TensorInfos of a file -> Previews of small tensors and of those that look like masks."""

import re
from collections.abc import Iterable
from itertools import islice
from math import isfinite
from typing import Final

from msgspec.structs import replace

from ckptool import grids
from ckptool.elements import elements, obstacle
from ckptool.grids import Preview
from ckptool.model import Kind, TensorInfo

FEW: Final = 7
"""Maximum number of distinct values of a tensor that is taken for a mask or index table."""
_EACH: Final = 4
"""Minimum average number of elements per distinct value."""
MOST_READ: Final = 400
_MOST_BYTES: Final = 16 << 20
"""Maximum size of a tensor of which a preview is read."""
_NAMED: Final = re.compile(r"mask|bias_table|position_ids|relative_position|(^|\.)tril$|triu")
_WHOLE: Final = frozenset({"bool", "uint8", "int8", "int16", "int32", "int64"})


def preview(tensor: TensorInfo) -> Preview | None:
    """Return the preview of `tensor`; None if it is too large, unreadable or has no preview.

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    steps = grids.window(tensor.shape)
    if steps is None or tensor.layout != "strided" or tensor.nbytes > _MOST_BYTES:
        return None
    shown = replace(
        tensor,
        shape=tuple(-(-n // s) for n, s in zip(tensor.shape, steps, strict=True) if s),
        stride=tuple(n * s for n, s in zip(tensor.stride, steps, strict=True) if s),
    )
    if obstacle(shown):
        return None
    return grids.preview(tensor.shape, tensor.dtype, b"".join(elements(shown)))


def masks(tensors: Iterable[TensorInfo], most: int) -> list[tuple[TensorInfo, Preview]]:
    """Return the first `limit` tensors that look like masks or index tables, with previews.

    A file does not record which tensors are buffers, so tensors with a few distinct values, but
    more than one, are taken for buffers. At most MAX_READ tensors are read.
    """
    likely = islice(filter(drawable, tensors), MOST_READ)
    seen = ((tensor, preview(tensor)) for tensor in likely)
    found = ((tensor, one) for tensor, one in seen if one is not None and telling(one))
    return list(islice(found, most))


def drawable(tensor: TensorInfo) -> bool:
    """Whether `tensor` is no parameter, and is small or looks like a buffer."""
    if tensor.kind is Kind.PARAMETER:
        return False
    buffer = tensor.kind is not None or tensor.dtype in _WHOLE or _NAMED.search(tensor.key)
    return grids.is_small(tensor.shape) or bool(buffer)


def telling(one: Preview) -> bool:
    """Whether a preview has several distinct values, at most MAX_DISTINCT of them finite, and at
    least _MIN_REPEATS elements per distinct value."""
    cells = [cell for row in one.rows for cell in row]
    different, finite = len(set(cells)), len({cell for cell in cells if isfinite(cell)})
    return different > 1 and finite <= FEW and different * _EACH <= len(cells)

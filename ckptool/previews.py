"""Tensors of a file -> the values of those that are worth a picture."""

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
"""Different values that a mask or a table of indices has at most, where it is drawn unasked."""
_EACH: Final = 4
"""How often it has each of them, on average."""
MOST_READ: Final = 400
_MOST_BYTES: Final = 16 << 20
"""Of a tensor of which some rows are read."""
_NAMED: Final = re.compile(r"mask|bias_table|position_ids|relative_position|(^|\.)tril$|triu")
_WHOLE: Final = frozenset({"bool", "uint8", "int8", "int16", "int32", "int64"})


def preview(tensor: TensorInfo) -> Preview | None:
    """Return the values of `tensor`, or some of them, None where they cannot be had.

    Raises:
        ReadError: the file cannot be read any more, or is not what was described.
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
    """Return the first tensors that look like masks or tables, with their values.

    A file does not say which of its tensors are buffers: what has a few different values only,
    and more than one, is taken for one.
    """
    likely = islice(filter(drawable, tensors), MOST_READ)
    seen = ((tensor, preview(tensor)) for tensor in likely)
    found = ((tensor, one) for tensor, one in seen if one is not None and telling(one))
    return list(islice(found, most))


def drawable(tensor: TensorInfo) -> bool:
    """Whether `tensor` is small, or looks like a buffer, of which some rows are enough."""
    if tensor.kind is Kind.PARAMETER:
        return False
    buffer = tensor.kind is not None or tensor.dtype in _WHOLE or _NAMED.search(tensor.key)
    return grids.is_small(tensor.shape) or bool(buffer)


def telling(one: Preview) -> bool:
    """Whether it has a few different values, and each of them several times."""
    cells = [cell for row in one.rows for cell in row]
    different, finite = len(set(cells)), len({cell for cell in cells if isfinite(cell)})
    return different > 1 and finite <= FEW and different * _EACH <= len(cells)

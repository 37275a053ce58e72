"""TensorInfo -> its values as torch prints them, shortened."""

from typing import Final

from ckptool.model import TensorInfo
from ckptool.values.elements import iter_elements, unreadable_reason

_MAX_NBYTES: Final = 256 << 20
"""Bytes of the largest tensor whose values are read."""


def print_values(tensor: TensorInfo) -> str:
    """Return `str()` of the tensor, whose `explain_unprinted` is "".

    Raises:
        ReadError: the file became unreadable or changed since it was described.
    """
    import torch

    dtype = getattr(torch, tensor.dtype)
    data = bytearray(b"".join(iter_elements(tensor)))
    values = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return str(values.reshape(tensor.shape))


def explain_unprinted(tensor: TensorInfo) -> str:
    """Return why the values of a tensor are not printed; "" if they can be."""
    if tensor.layout not in {"strided", "chunked"} or tensor.wrapper:
        return f"it is {tensor.wrapper or tensor.layout}"
    if tensor.is_on_meta:
        return "it is on the meta device: the file has no values of it"
    if tensor.nbytes > _MAX_NBYTES:
        return f"it has more than {_MAX_NBYTES >> 20} MiB"
    return unreadable_reason(tensor)

"""torch.Tensor -> bytes of its elements."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def copy_tensor_bytes(tensor: "Tensor") -> bytes:
    """Return the bytes of a contiguous tensor on the CPU."""
    from ctypes import string_at  # the commands that read no values do without

    return string_at(tensor.data_ptr(), tensor.numel() * tensor.itemsize)

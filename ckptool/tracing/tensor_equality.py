"""Tensors of a running process -> whether they are equal, without communication between ranks."""

from typing import TYPE_CHECKING, Any

from ckptool.modules.tensors.tensor_parts import get_wrapper_name, has_all_elements

if TYPE_CHECKING:
    from torch import Tensor


def have_equal_elements(first: "Tensor", second: "Tensor") -> bool:
    """Whether two tensors are equal, of a DTensor the part that this rank has.

    False where the elements are not there: on meta, in a storage that is freed (FSDP), or of a
    subclass that hides them. The dtypes may differ.
    """
    import torch

    pair = _take_local_parts(first.detach(), second.detach())
    if pair is None or pair[0].shape != pair[1].shape:
        return False
    for tensor in pair:
        if get_wrapper_name(tensor) or not has_all_elements(tensor):
            return False
    first, second = (tensor.cpu() for tensor in pair)
    return first.layout == second.layout and bool(torch.equal(first, second.to(first.dtype)))


def _take_local_parts(first: "Tensor", second: "Tensor") -> "tuple[Tensor, Tensor] | None":
    """Return what of both this rank has: the part of a whole tensor that a DTensor has."""
    is_first, is_second = hasattr(first, "device_mesh"), hasattr(second, "device_mesh")
    if is_first and is_second:
        return _get_local(first), _get_local(second)
    if not (is_first or is_second):
        return first, second
    sharded, whole = (first, second) if is_first else (second, first)
    part = _cut_local_part(whole, sharded)
    return None if part is None else (_get_local(sharded), part)


def _get_local(tensor: Any) -> "Tensor":
    local: Tensor = tensor.to_local()
    return local


def _cut_local_part(whole: "Tensor", sharded: Any) -> "Tensor | None":
    """Return the part of `whole` that a DTensor of the same shape has on this rank."""
    list_chunks = getattr(sharded, "__create_chunk_list__", None)
    chunks: list[Any] = list_chunks() if list_chunks is not None else []
    if whole.shape != sharded.shape or len(chunks) != 1:
        return None
    for dim, (start, size) in enumerate(zip(chunks[0].offsets, chunks[0].sizes, strict=True)):
        whole = whole.narrow(dim, start, size)
    return whole

"""torch.Tensor -> the tensors that it consists of, and where its memory is."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import get_qualified_name

if TYPE_CHECKING:
    from torch import Tensor

_COMPONENT_NAMES: Final = {
    "sparse_coo": ("indices", "values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_csc": ("ccol_indices", "row_indices", "values"),
    "sparse_bsr": ("crow_indices", "col_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
}

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def bypass_torch_function(
    function: Callable[_Parameters, _Result],
) -> Callable[_Parameters, _Result]:
    """Call a function without `__torch_function__` of tensor subclasses.

    That of a ShardedTensor raises for nearly every property that torch.Tensor has.
    """

    @wraps(function)
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        from torch._C import DisableTorchFunctionSubclass

        with DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    return call


def is_lazy(value: object) -> bool:
    """Whether `value` is a parameter or buffer that gets its shape from the first input."""
    return isinstance(value, _get_lazy_type())


@cache
def _get_lazy_type() -> type:
    """Return the base of torch's uninitialized parameters and buffers, imported once."""
    from torch.nn import parameter

    lazy_type: type = parameter.UninitializedTensorMixin  # type: ignore[attr-defined]
    return lazy_type


def is_plain(tensor: "Tensor") -> bool:
    """Whether it is a dense tensor of no subclass, whose elements are in its storage as they are.

    Not a conjugated view: that has memory in common with another tensor, and other values.
    """
    return type(tensor) in _get_plain_types() and not (
        tensor.layout is not _get_strided()
        or tensor.is_quantized
        or tensor.is_nested
        or tensor.is_conj()
        or tensor.is_neg()
    )


@cache
def _get_strided() -> object:
    """Return the layout of dense tensors, imported once."""
    from torch import strided

    return strided


def get_wrapper_name(tensor: "Tensor") -> str:
    return "" if type(tensor) in _get_plain_types() else get_qualified_name(type(tensor))


@cache
def _get_plain_types() -> frozenset[type]:
    """Return the types of tensors that are no subclasses of a wrapper, imported once."""
    from torch import Tensor, nn

    return frozenset({Tensor, nn.Parameter})


@bypass_torch_function
def get_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of a tensor or an array; of a nested tensor the number of its tensors."""
    if getattr(value, "is_nested", False):
        return (int(value.size(0)),)
    return tuple(map(int, value.shape))


@bypass_torch_function
def find_memory_address(tensor: "Tensor") -> int | None:
    """Return the address of the storage; None for a tensor without memory of its own.

    That is one on meta, one that is sparse or lazy, or an instance of a wrapper subclass, whose
    storage has a size and no memory: reading or writing it ends the process.
    """
    if is_lazy(tensor):
        return None
    try:
        return int(tensor.untyped_storage().data_ptr()) or None
    except (RuntimeError, ValueError, NotImplementedError):
        return None


@bypass_torch_function
def has_all_elements(tensor: "Tensor") -> bool:
    """Whether the elements of a dense tensor can be read; True for another one that is not on meta.

    The storage of a parameter of FullyShardedDataParallel is freed between two uses: reading
    elements that are beyond it ends the process.
    """
    import torch

    if tensor.is_meta or is_lazy(tensor):
        return False
    if tensor.layout is not torch.strided or tensor.is_nested or _list_inner_tensors(tensor):
        return True
    if not tensor.numel():
        return True
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = int(tensor.storage_offset()) + sum((size - 1) * step for size, step in steps)
    try:
        storage = tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return True
    return (last + 1) * tensor.element_size() <= storage.nbytes()


@bypass_torch_function
def list_memory_tensors(tensor: "Tensor") -> "list[Tensor]":
    """Return the tensors whose memory holds the values of `tensor`, in the order of its parts.

    Itself if it is dense, the values of a sparse one, and what a wrapper subclass wraps. [] if it
    is nested, lazy, quantised or on meta, or if its class does not say what it wraps.
    """
    if is_lazy(tensor) or tensor.is_quantized or tensor.is_nested:
        return []
    components = list_components(tensor)
    if components:
        is_wrapper = bool(_list_inner_tensors(tensor))
        return [
            part
            for name, component in components
            if is_wrapper or name == "values"
            for part in list_memory_tensors(component)
        ]
    return [tensor] if find_memory_address(tensor) is not None else []


@bypass_torch_function
def list_components(tensor: "Tensor") -> list[tuple[str, "Tensor"]]:
    """Return the (name, component) pairs of a sparse, nested or wrapped tensor; else []."""
    inner_tensors = _list_inner_tensors(tensor)
    if inner_tensors:
        return inner_tensors
    if tensor.is_nested:
        names = (("buffer", "values"), ("sizes", "_nested_tensor_size"))
        return [(name, getattr(tensor.detach(), method)()) for name, method in names]
    layout = str(tensor.layout).removeprefix("torch.")
    # The elements of an uncoalesced tensor are available only by this name.
    underscore = "_" if layout == "sparse_coo" else ""
    return [
        (name, getattr(tensor.detach(), underscore + name)())
        for name in _COMPONENT_NAMES.get(layout, ())
    ]


def _list_inner_tensors(tensor: "Tensor") -> list[tuple[str, "Tensor"]]:
    """Return the tensors with the data of a wrapper subclass such as DTensor, by attribute.

    [] for other tensors, and for a class whose code raises. What it lists and is no tensor, such as
    the mesh of a DTensor, has no data.
    """
    if not hasattr(type(tensor), "__tensor_flatten__"):
        return []
    from torch import Tensor

    with suppress(UserCodeError), user_code():
        parts = [(name, getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0]]  # type: ignore[attr-defined]
        return [(name, part) for name, part in parts if isinstance(part, Tensor)]
    return []

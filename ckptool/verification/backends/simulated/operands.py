"""Arguments of an operation -> Operands: tensors that CUDA requires on one device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch._ops import OpOverload

from ckptool.modules.tensors.elements import iter_nested_tensors
from ckptool.verification.backends.simulated.device_tags import CPU

_ATEN: Final = torch.ops.aten

_MIXED_DEVICE_OPS: Final = frozenset(
    {
        _ATEN._to_copy,  # noqa: SLF001
        _ATEN.copy_,
        _ATEN.copy,
        _ATEN._local_scalar_dense,  # noqa: SLF001
        _ATEN._pack_padded_sequence,  # noqa: SLF001
        _ATEN.set_,
        _ATEN.resize_,
        _ATEN.resize_as_,
        _ATEN.lift_fresh,
        _ATEN.is_same_size,
        _ATEN.bernoulli_,
        _ATEN.bernoulli,
    }
)
"""Operations that accept operands on several devices, or move them."""
_INDEXING_OPS: Final = frozenset(
    {
        _ATEN.index,
        _ATEN._unsafe_index,  # noqa: SLF001
        _ATEN.index_put,
        _ATEN.index_put_,
        _ATEN._index_put_impl_,
        _ATEN._unsafe_index_put,  # noqa: SLF001
    }
)
"""Operations where CPU indices may index a CUDA tensor, but not the reverse."""
_STRICT_OPS: Final = frozenset(
    getattr(_ATEN, name)
    for name in (
        "_prelu_kernel",
        "addbmm",
        "addcdiv",
        "addcdiv_",
        "addmm",
        "addmm_",
        "addmv",
        "addr",
        "baddbmm",
        "bucketize",
        "cat",
        "clamp",
        "clamp_",
        "clamp_max",
        "clamp_max_",
        "clamp_min",
        "clamp_min_",
        "complex",
        "dot",
        "embedding",
        "equal",
        "gather",
        "gcd",
        "huber_loss",
        "igamma",
        "igammac",
        "index_select",
        "isin",
        "lcm",
        "logaddexp",
        "logaddexp2",
        "masked_scatter",
        "masked_scatter_",
        "masked_select",
        "mse_loss",
        "nextafter",
        "normal",
        "polar",
        "scatter",
        "searchsorted",
        "smooth_l1_loss",
        "stack",
        "take",
    )
)
"""Operations that refuse even a 0-dim CPU tensor, which others accept as a scalar.

Measured on an H100 with torch 2.11.0+cu130 (by tests/verify/numbers.py).
"""
_CPU_ARGUMENT: Final = {_ATEN._pack_padded_sequence: 1}  # noqa: SLF001
"""Operation -> position of the argument that must be on the CPU."""
CPU_RESULT: Final = _CPU_ARGUMENT
"""Operation -> position of the result that is always on the CPU; equal to the arguments'."""
_NAMESPACES: Final = frozenset({"aten", "prim", "prims", "profiler"})


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """Tensor arguments of one operation by device requirement."""

    same_device: tuple[Tensor, ...] = ()
    """Tensors that must be on one device."""
    on_cpu: tuple[Tensor, ...] = ()
    """Tensors that must be on the CPU."""
    device_source: Tensor | None = None
    """Tensor that determines the device of the result."""


def classify_operands(
    op: "OpOverload[..., Any]",
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: Callable[[Tensor], torch.device],
) -> Operands:
    """Classify the tensor arguments of `op` by the devices that CUDA requires."""
    tensors = [*iter_nested_tensors(args), *iter_nested_tensors(kwargs)]
    if not tensors:
        return Operands()
    packet = op.overloadpacket
    if (
        packet in _MIXED_DEVICE_OPS
        or packet.__name__.startswith("_foreach")
        or "nested" in packet.__name__
    ):
        position = _CPU_ARGUMENT.get(packet)
        return Operands(
            on_cpu=() if position is None else (args[position],), device_source=tensors[0]
        )
    if packet in _INDEXING_OPS:
        return _classify_indexing(args, device)
    same_device = (
        tensors
        if packet in _STRICT_OPS
        else [tensor for tensor in tensors if not _is_cpu_scalar(tensor, device)]
    )
    cuda_tensors = (tensor for tensor in same_device if device(tensor) != CPU)
    return Operands(
        tuple(same_device), device_source=next(cuda_tensors, (same_device or tensors)[0])
    )


def is_custom(op: "OpOverload[..., Any]") -> bool:
    """Whether `op` is not torch's own, so that its CUDA kernel is separate code."""
    return op.namespace not in _NAMESPACES


def _classify_indexing(args: tuple[Any, ...], device: Callable[[Tensor], torch.device]) -> Operands:
    source, indices, *remaining = args
    same_device = [
        source,
        *(
            value
            for value in remaining[:1]
            if isinstance(value, Tensor) and not _is_cpu_scalar(value, device)
        ),
    ]
    if device(source) == CPU:
        same_device += [index for index in indices if index is not None]
    return Operands(tuple(same_device), device_source=source)


def _is_cpu_scalar(tensor: Tensor, device: Callable[[Tensor], torch.device]) -> bool:
    """Whether it is a 0-dim CPU tensor, which CUDA operations accept as a scalar."""
    return tensor.dim() == 0 and device(tensor) == CPU

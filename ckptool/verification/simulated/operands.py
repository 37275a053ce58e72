"""An operation's arguments -> which of them CUDA wants on one device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch._ops import OpOverload

from ckptool.verification.simulated.tags import CPU

_ATEN: Final = torch.ops.aten

_MIXED: Final = frozenset(
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
"""What CUDA accepts with operands on several devices, or moves by itself."""
_INDEXING: Final = frozenset(
    {
        _ATEN.index,
        _ATEN._unsafe_index,  # noqa: SLF001
        _ATEN.index_put,
        _ATEN.index_put_,
        _ATEN._index_put_impl_,
        _ATEN._unsafe_index_put,  # noqa: SLF001
    }
)
"""Indices on the CPU may index what is on CUDA, never the other way round."""
_STRICT: Final = frozenset(
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
"""What refuses even a CPU tensor without dimensions, which others take for a number.

Asked of an H100 with torch 2.11.0+cu130 (tests/verify/numbers.py holds the questions).
"""
_LENGTHS: Final = {_ATEN._pack_padded_sequence: 1}  # noqa: SLF001
"""Position of the argument that has to be on the CPU."""
CPU_RESULT: Final = _LENGTHS
"""Position of the result that is always on the CPU: the same, as it happens."""
_NAMESPACES: Final = frozenset({"aten", "prim", "prims", "profiler"})


@dataclass(frozen=True, slots=True, eq=False)
class Operands:
    """The tensors of one operation."""

    together: tuple[Tensor, ...] = ()
    """Those that have to be on one device."""
    on_cpu: tuple[Tensor, ...] = ()
    """Those that have to be on the CPU."""
    home: Tensor | None = None
    """The one on whose device the result will be."""


def operands(
    op: OpOverload[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: Callable[[Tensor], torch.device],
) -> Operands:
    """Sort the tensors that `op` is called with by what CUDA asks of them."""
    tensors = [*tensors_in(args), *tensors_in(kwargs)]
    if not tensors:
        return Operands()
    packet = op.overloadpacket
    if packet in _MIXED or packet.__name__.startswith("_foreach") or "nested" in packet.__name__:
        position = _LENGTHS.get(packet)
        return Operands(on_cpu=() if position is None else (args[position],), home=tensors[0])
    if packet in _INDEXING:
        return _indexing(args, device)
    together = tensors if packet in _STRICT else [t for t in tensors if not _number(t, device)]
    away = (t for t in together if device(t) != CPU)
    return Operands(tuple(together), home=next(away, (together or tensors)[0]))


def is_custom(op: OpOverload[..., Any]) -> bool:
    """Whether `op` is not torch's own, so that its CUDA kernel is another program."""
    return op.namespace not in _NAMESPACES


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in (nested) tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for child in value:
            yield from tensors_in(child)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def _indexing(args: tuple[Any, ...], device: Callable[[Tensor], torch.device]) -> Operands:
    indexed, indices, *rest = args
    together = [indexed, *(v for v in rest[:1] if isinstance(v, Tensor) and not _number(v, device))]
    if device(indexed) == CPU:
        together += [index for index in indices if index is not None]
    return Operands(tuple(together), home=indexed)


def _number(tensor: Tensor, device: Callable[[Tensor], torch.device]) -> bool:
    """Whether CUDA takes it for a number: a CPU tensor without dimensions."""
    return tensor.dim() == 0 and device(tensor) == CPU

"""Run operations that have a kernel on CUDA but not on the CPU, in a wider dtype."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_WIDER_DTYPES: Final = {
    (torch.ops.aten.histc, torch.uint8): torch.float64,
    (torch.ops.aten.histc, torch.int32): torch.float64,
    (torch.ops.aten.histc, torch.int64): torch.float64,
}
"""(operation, dtype of its first argument) -> a dtype that the CPU kernel supports.

Each was observed on a CUDA device: tests/cuda runs tests/verify/battery.py there.
"""


def run_with_cpu_fallback(func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Run an operation; if only CUDA supports its dtype, compute in a wider one and cast back."""
    if not (args and isinstance(args[0], Tensor)):
        return func(*args, **keywords)
    narrow_dtype = args[0].dtype
    wide_dtype = _WIDER_DTYPES.get((func.overloadpacket, narrow_dtype))
    if wide_dtype is None:
        return func(*args, **keywords)
    args, keywords = tree_map_only(
        Tensor, _make_converter(narrow_dtype, wide_dtype), (args, keywords)
    )
    return tree_map_only(Tensor, _make_converter(wide_dtype, narrow_dtype), func(*args, **keywords))


def _make_converter(
    source_dtype: torch.dtype, target_dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.to(target_dtype) if tensor.dtype == source_dtype else tensor

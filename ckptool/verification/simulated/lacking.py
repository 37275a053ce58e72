"""Run operations that have a kernel on CUDA but not on the CPU, in a wider dtype."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_WIDER: Final = {
    (torch.ops.aten.histc, torch.uint8): torch.float64,
    (torch.ops.aten.histc, torch.int32): torch.float64,
    (torch.ops.aten.histc, torch.int64): torch.float64,
}
"""(operation, dtype of its first argument) -> a dtype that the CPU kernel supports.

Each was observed on a CUDA device: tests/cuda runs tests/verify/battery.py there.
"""


def result(func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Run an operation; if only CUDA supports its dtype, compute in a wider one and cast back."""
    if not (args and isinstance(args[0], Tensor)):
        return func(*args, **named)
    narrow = args[0].dtype
    wide = _WIDER.get((func.overloadpacket, narrow))
    if wide is None:
        return func(*args, **named)
    args, named = tree_map_only(Tensor, _to(narrow, wide), (args, named))
    return tree_map_only(Tensor, _to(wide, narrow), func(*args, **named))


def _to(one: torch.dtype, other: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.to(other) if tensor.dtype == one else tensor

"""Operations of which CUDA has kernels that the CPU lacks -> their results, in a wider dtype."""

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
"""Operation, dtype of its first argument -> a dtype that the CPU has it in.

Each was seen on a device: tests/cuda runs tests/verify/battery.py there.
"""


def result(func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Run an operation, in a wider dtype where only CUDA has it in the one that is asked for."""
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

"""ModuleDiff -> what `copy_` raises: a tensor that no parameter of another layout can take.

`load_state_dict` copies each tensor of the file into the module's. Whether torch can copy a layout
into another is asked with samples of one element.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import Skipped, TensorInfo
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.phrases import summarize_message

_DENSE_LAYOUTS: Final = ("strided", "chunked")
_SAMPLES: Final[Mapping[str, Callable[[], Tensor]]] = {
    "sparse_coo": lambda: torch.zeros(1, 1).to_sparse(),
    "sparse_csr": lambda: torch.zeros(1, 1).to_sparse_csr(),
    "sparse_csc": lambda: torch.zeros(1, 1).to_sparse_csc(),
    "sparse_bsr": lambda: torch.zeros(1, 1).to_sparse_bsr((1, 1)),
    "sparse_bsc": lambda: torch.zeros(1, 1).to_sparse_bsc((1, 1)),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(1, 1), 1.0, 0, torch.qint8),
}


def find_copy_error(diff: ModuleDiff) -> str | Skipped:
    """Return what copying raises for the first tensor that cannot be copied; "" if there is none.

    Skipped if the file has a tensor of a kind that cannot be sampled, and no other is refused.
    """
    errors: dict[tuple[str, str], str | None] = {}
    unknown: Skipped | None = None
    for key, tensor in diff.state.tensors.items():
        module_tensor = diff.module.saved_tensors.get(key)
        if module_tensor is None or _is_plain(tensor):
            continue
        if tensor.layout == module_tensor.tensor.layout and tensor.layout in _SAMPLES:
            continue
        kinds = (_describe_kind(tensor), module_tensor.tensor.layout)
        if kinds not in errors:
            errors[kinds] = _try_copy(tensor)
        error = errors[kinds]
        if error:
            return f"While copying `{key}`, which is {kinds[0]}: {error}"
        if error is None and unknown is None:
            unknown = Skipped(f"copying `{key}`", f"it is {kinds[0]}")
    return unknown or ""


def _is_plain(tensor: TensorInfo) -> bool:
    return tensor.layout in _DENSE_LAYOUTS and not tensor.wrapper and tensor.device != "meta"


def _describe_kind(tensor: TensorInfo) -> str:
    return "on meta" if tensor.device == "meta" else tensor.wrapper or tensor.layout


def _try_copy(tensor: TensorInfo) -> str | None:
    """Return what copying a sample into a dense tensor raises; None if there is no sample."""
    if tensor.device == "meta":
        source = torch.empty(1, 1, device="meta")
    elif tensor.wrapper or tensor.layout not in _SAMPLES:
        return None
    else:
        source = _SAMPLES[tensor.layout]()
    try:
        with user_code():
            torch.zeros(1, 1).copy_(source)
    except UserCodeError as error:
        return summarize_message(str(error.error))
    return ""

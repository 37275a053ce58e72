"""Checkpoint -> one line that answers whether loading it is safe, and its number of parameters."""

from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod
from typing import Final

from ckptool.model import (
    Checkpoint,
    Container,
    GlobalUse,
    Kind,
    Safety,
    StateDict,
    group_by_storage,
)
from ckptool.phrases import pluralize, quote_code

RESTRICTED_LOAD: Final = "torch.load(weights_only=True)"
_SAFETENSORS: Final = frozenset({Container.SAFETENSORS, Container.SHARDED_SAFETENSORS})
_CODE_LOADERS: Final = {
    Container.TORCHSCRIPT: "torch.jit.load runs the code in it",
    Container.TORCH_EXPORT: "torch.export.load runs the program in it",
}
_SAFE_LOADERS: Final = {
    Container.DCP: "torch.distributed.checkpoint reads it, and it names no classes but its own",
    **dict.fromkeys(
        (
            *(Container.TORCH_ZIP, Container.TORCH_LEGACY, Container.TORCH_TAR),
            *(Container.PICKLE, Container.SHARDED_TORCH, Container.LIVE),
        ),
        f"{RESTRICTED_LOAD} reads it",
    ),
}
"""Container -> what loads a file of it without running code, if nothing in it prevents that."""
_BATCH_NORM_BUFFERS: Final = ("running_mean", "running_var")
_NUMBER_DTYPES: Final = ("float", "bfloat", "complex")


def describe_safety(checkpoint: Checkpoint) -> str:
    """Return what loads the file without running code of it, or what prevents that."""
    unsafe_uses = [use for use in checkpoint.globals if use.safety is not Safety.SAFE]
    if checkpoint.damage:
        return f"not known whether it is safe: {checkpoint.damage}"
    if checkpoint.container in _SAFETENSORS:
        return _describe_tensors_only(unsafe_uses)
    return next(
        _iter_obstacles(checkpoint, unsafe_uses), f"safe: {_SAFE_LOADERS.get(checkpoint.container)}"
    )


def _iter_obstacles(checkpoint: Checkpoint, unsafe_uses: list[GlobalUse]) -> Iterator[str]:
    """Yield what prevents a load that runs no code, the most severe first."""
    is_dangerous = any(use.safety is Safety.DANGEROUS for use in unsafe_uses)
    danger = "; weights_only=False would run it" if is_dangerous else ""
    if checkpoint.container in _CODE_LOADERS:
        yield f"not safe unless you trust its source: {_CODE_LOADERS[checkpoint.container]}"
    if unsafe_uses and not checkpoint.load_refusal:
        prefix = "dangerous: " if is_dangerous else ""
        yield f"{prefix}{RESTRICTED_LOAD} refuses {_list_names(unsafe_uses)}{danger}"
    if checkpoint.load_refusal:
        names = f"; it names {_list_names(unsafe_uses)}" if is_dangerous else ""
        yield f"torch.load refuses it: {checkpoint.load_refusal}{names}"
    if checkpoint.weights_only_refusal:
        yield f"{RESTRICTED_LOAD} refuses it: {checkpoint.weights_only_refusal}"
    if checkpoint.unread:
        yield f"not known whether it is safe: {checkpoint.unread[0].what} was not looked at"


def count_parameters(states: Sequence[StateDict]) -> int:
    """Return the number of elements of the parameters in the states of models, tied ones once.

    A pickled module records which of its tensors are parameters. In a state_dict, every floating-
    point tensor counts but those that BatchNorm calls `running_mean` and `running_var`.
    """
    tensors = [
        tensor
        for state in states
        if state.role in {"state_dict", "module"}
        for tensor in state.tensors.values()
    ]
    dtypes = {tensor.dtype for tensor in tensors}
    number_dtypes = frozenset(dtype for dtype in dtypes if dtype.startswith(_NUMBER_DTYPES))
    parameter, buffer = Kind.PARAMETER, Kind.BUFFER
    parameters = [
        tensor
        for tensor in tensors
        if tensor.kind is parameter
        or (
            tensor.kind is not buffer
            and tensor.dtype in number_dtypes
            and tensor.key.rpartition(".")[2] not in _BATCH_NORM_BUFFERS
        )
    ]
    shape_counts = Counter([tensor.shape for tensor in parameters])
    total = sum(prod(shape) * count for shape, count in shape_counts.items())
    for group in group_by_storage(parameters):
        views = {(tensor.storage_offset, tensor.shape) for tensor in group}
        total -= sum(tensor.numel for tensor in group) - sum(prod(shape) for _, shape in views)
    return total


def _describe_tensors_only(unsafe_uses: list[GlobalUse]) -> str:
    if unsafe_uses:
        names = _list_names(unsafe_uses)
        return f"safetensors runs no code; a pickle inside or next to it references {names}"
    return "safe: a safetensors file contains no code"


def _list_names(uses: list[GlobalUse]) -> str:
    """Return the first name and its place, and the number of the others."""
    first = next((use for use in uses if use.safety is Safety.DANGEROUS), uses[0])
    other_count = len({use.qualified_name for use in uses}) - 1
    place = f" at {quote_code(first.at)}" if first.at else ""
    others = f" and {pluralize(other_count, 'more global')}" if other_count else ""
    return f"{first.qualified_name}{place}{others}"

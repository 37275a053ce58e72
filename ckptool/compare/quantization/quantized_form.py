"""Tensors of two files -> QuantizedForm: one file is the other with its weights quantised."""

from collections.abc import Mapping

from msgspec import Struct

from ckptool.compare.quantization.layers import find_quantization
from ckptool.compare.quantization.scheme import QuantizationInfo, QuantizedLayer
from ckptool.model import TensorInfo, collect_last_segments


class QuantizedForm(Struct, frozen=True):
    """Weights that one of two files has quantised, and the other as they were before."""

    is_new: bool
    """Whether it is the new file that is quantised."""
    layers: tuple[QuantizedLayer, ...]
    """The quantised weights that the other file has unquantised."""
    explained_keys: frozenset[str]
    """Keys of both files that are added, removed or changed because of it."""
    misfit_keys: tuple[str, ...] = ()
    """Keys of weights that have another number of elements in the other file."""


def find_quantized_form(
    old_tensors: Mapping[str, TensorInfo], new_tensors: Mapping[str, TensorInfo]
) -> QuantizedForm | None:
    """Return which file is the quantised form of the other; None if neither is."""
    in_old, in_new = (
        find_quantization(tensors, collect_last_segments(tensors))
        for tensors in (old_tensors, new_tensors)
    )
    return _match_layers(in_new, in_old, old_tensors, is_new=True) or _match_layers(
        in_old, in_new, new_tensors, is_new=False
    )


def _match_layers(
    info: QuantizationInfo,
    other: QuantizationInfo,
    other_tensors: Mapping[str, TensorInfo],
    *,
    is_new: bool,
) -> QuantizedForm | None:
    """Return the form whose weights are `info`'s, and unquantised in `other_tensors`."""
    quantized_keys = {layer.weight_key for layer in other.layers}
    layers = tuple(
        layer
        for layer in info.layers
        if not layer.is_probable
        and layer.weight_key in other_tensors
        and layer.weight_key not in quantized_keys
    )
    if not layers:
        return None
    misfit_keys = tuple(
        layer.weight_key
        for layer in layers
        if layer.format.numel not in {0, other_tensors[layer.weight_key].numel}
    )
    keys = {key for layer in layers for key in (layer.weight_key, *layer.keys.values())}
    return QuantizedForm(is_new, layers, frozenset(keys | info.side_keys), misfit_keys)

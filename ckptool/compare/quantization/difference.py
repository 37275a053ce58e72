"""State x module -> QuantizationDifference: weights that one side has quantised in another way."""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice, takewhile

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.quantization.layers import find_module_quantization, find_state_quantization
from ckptool.compare.quantization.scheme import QuantizationInfo, QuantizedLayer
from ckptool.compare.renames import find_prefix_rewrite
from ckptool.model import Checkpoint, ModuleInfo, StateDict, TensorInfo, contiguous_stride


class QuantizationDifference(Struct, frozen=True):
    """Weights that the file or the module has quantised, and the other side has not so."""

    file_layers: tuple[QuantizedLayer, ...]
    """Quantised in the file, and not in the same way in the module."""
    module_layers: tuple[QuantizedLayer, ...]
    """Quantised in the module, and not in the same way in the file."""
    explained_keys: frozenset[str]
    """Keys of both sides that are missing, unexpected or mismatched because of it, and the
    missing ones of a weight that both have quantised alike and the file without all its tensors."""
    misfit_keys: tuple[str, ...] = ()
    """Keys of the module whose weight has another number of elements than the quantised one."""
    absent_keys: tuple[str, ...] = ()
    """Weights that the file has quantised, and that the module does not have in any form."""
    unscaled_dtype: str = ""
    """Dtype in which the module has the file's weights without a place for scales; "" if none."""


def find_quantization_difference(
    checkpoint: Checkpoint, state: StateDict, module: ModuleInfo
) -> QuantizationDifference | None:
    """Return how file and module differ in what is quantised; None if they do not."""
    places = sorted(other.at for other in checkpoint.states)
    in_file = find_state_quantization(state, list_places_inside(places, state.at))
    in_module = find_module_quantization(module)
    if not in_file.layers and not in_module.layers:
        return None
    module_weights = {key: saved.tensor for key, saved in module.saved_tensors.items()}
    file_layers, module_layers = _drop_moved_layers(
        _subtract_layers(in_file, in_module),
        _subtract_layers(in_module, _count_as_complete(in_file)),
        state.tensors,
        module_weights,
    )
    module_identities = {layer.identity for layer in in_module.layers}
    lacking_keys = {
        key
        for layer in in_file.layers
        if layer.identity in module_identities
        for key in layer.lacking_keys
    }
    if not file_layers and not module_layers and not lacking_keys:
        return None
    known_keys = {*module_weights, *(layer.weight_key for layer in in_module.layers)}
    key_map = _map_weight_keys(file_layers, module_weights, state.tensors, known_keys)
    module_keys = {
        layer.weight_key: key_map.get(layer.weight_key, layer.weight_key) for layer in file_layers
    }
    misfit_keys = tuple(
        key
        for layer in file_layers
        if (key := module_keys[layer.weight_key]) in module_weights
        and layer.format.numel not in {0, module_weights[key].numel}
    )
    explained_keys = {
        *_iter_keys((*file_layers, *module_layers)),
        *key_map.values(),
        *lacking_keys,
        *(in_file.side_keys if file_layers else ()),
        *(in_module.side_keys if module_layers else ()),
        *_iter_covered_keys(file_layers, module.saved_tensors),
        *_iter_covered_keys(module_layers, state.tensors),
    }
    return QuantizationDifference(
        file_layers,
        module_layers,
        frozenset(explained_keys - {*misfit_keys}),
        misfit_keys,
        tuple(key for key, module_key in module_keys.items() if module_key not in known_keys),
        _find_unscaled_dtype(file_layers, module_weights),
    )


def _drop_moved_layers(
    file_layers: tuple[QuantizedLayer, ...],
    module_layers: tuple[QuantizedLayer, ...],
    file_tensors: Collection[str],
    module_tensors: Collection[str],
) -> tuple[tuple[QuantizedLayer, ...], tuple[QuantizedLayer, ...]]:
    """Leave out layers of a scheme that both sides have at other places: renamed, or missing."""
    names = {layer.scheme.name for layer in file_layers}
    names &= {layer.scheme.name for layer in module_layers}
    return tuple(
        layer
        for layer in file_layers
        if layer.scheme.name not in names or layer.weight_key in module_tensors
    ), tuple(
        layer
        for layer in module_layers
        if layer.scheme.name not in names or layer.weight_key in file_tensors
    )


def list_places_inside(sorted_places: Sequence[str], at: str) -> tuple[str, ...]:
    """Return the places of other states below `at`, relative to it: of packed parameters.

    A file may hold thousands of states, each of which is asked about: the places are sorted once.
    """
    prefix = f"{at}." if at else ""
    start = bisect_left(sorted_places, prefix)
    candidates = islice(sorted_places, start, None)
    own_places = takewhile(lambda place: place.startswith(prefix), candidates)
    return tuple(place.removeprefix(prefix) for place in own_places if place != at)


def _subtract_layers(info: QuantizationInfo, other: QuantizationInfo) -> tuple[QuantizedLayer, ...]:
    """Return the layers of `info` that the other side does not have, or has without a tensor.

    A layer that lacks a tensor itself is no other layer than the other side's complete one.
    """
    complete = {layer.identity for layer in other.layers if not layer.lacking_keys}
    partial = {layer.identity for layer in other.layers if layer.lacking_keys}
    return tuple(
        layer
        for layer in info.layers
        if not layer.is_probable
        and layer.identity not in complete
        and not (layer.lacking_keys and layer.identity in partial)
    )


def _count_as_complete(info: QuantizationInfo) -> QuantizationInfo:
    """Return the layers as if each had all its tensors: what the file lacks, CK235 says."""
    return QuantizationInfo(tuple(replace(layer, lacking_keys=()) for layer in info.layers))


def _iter_keys(layers: Iterable[QuantizedLayer]) -> Iterable[str]:
    for layer in layers:
        yield layer.weight_key
        yield from layer.keys.values()


def _iter_covered_keys(
    layers: Iterable[QuantizedLayer], other_keys: Collection[str]
) -> Iterable[str]:
    """Yield the other side's keys in layers all of whose tensors are packed: the bias, too."""
    prefixes = {layer.prefix for layer in layers if layer.scheme.covers_layer}
    if prefixes:
        yield from (key for key in other_keys if key.rpartition(".")[0] in prefixes)


def _map_weight_keys(
    layers: Iterable[QuantizedLayer],
    module_weights: Mapping[str, TensorInfo],
    file_tensors: Mapping[str, TensorInfo],
    known_keys: Collection[str],
) -> Mapping[str, str]:
    """Return the keys of quantised weights that match the module's without a prefix, or with one.

    Shapes are not compared: a packed weight may not say its own.
    """
    unmatched_keys = [key for layer in layers if (key := layer.weight_key) not in known_keys]
    if not unmatched_keys:
        return {}
    missing = [_erase_shape(key) for key in module_weights if key not in file_tensors]
    unexpected = {key: _erase_shape(key) for key in unmatched_keys}
    rewrite = find_prefix_rewrite(missing, [*unexpected.values()], {}, unexpected)
    return rewrite.key_map if rewrite else {}


def _erase_shape(key: str) -> TensorInfo:
    return TensorInfo(key, (), "float32", contiguous_stride(()), 0, None)


def _find_unscaled_dtype(
    layers: tuple[QuantizedLayer, ...], module_weights: Mapping[str, TensorInfo]
) -> str:
    """Return the narrow dtype that the module has each of the file's weights in; "" if not all."""
    dtypes = {
        module_weights[layer.weight_key].dtype if layer.weight_key in module_weights else ""
        for layer in layers
    }
    dtype = dtypes.pop() if len(dtypes) == 1 else ""
    return dtype if dtype == "int8" or dtype.startswith("float8") else ""

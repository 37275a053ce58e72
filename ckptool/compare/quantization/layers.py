"""Tensors -> QuantizationInfo: which keys are one quantised weight, and what it lacks."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from ckptool.compare.quantization.scheme import (
    NAME,
    Parts,
    QuantizationInfo,
    QuantizationScheme,
    QuantizedLayer,
    WeightFormat,
    format_part_key,
)
from ckptool.compare.quantization.schemes import EAGER, OBSERVED, SCHEMES, TORCHAO
from ckptool.compare.rename_search.key_subtrees import mask_layer_numbers
from ckptool.model import ModuleInfo, StateDict, TensorInfo, collect_last_segments

_WEIGHT: Final = "weight"
"""Name of the weight where no part of the scheme says it."""
_PACKED_NAMES: Final = ("_packed_params", "activation_post_process", "_fake_quant")
"""Parts of keys of torch.ao's packed parameters and observers."""
_OBSERVER_NAMES: Final = frozenset({"activation_post_process", "weight_fake_quant"})

Tensors = Mapping[str, TensorInfo]
_Place = tuple[str, str]
"""(prefix of a layer, name of the weight in it)."""


class _PartPattern(Struct, frozen=True):
    """A part of a scheme whose name contains that of the weight: "_{name}_qdata"."""

    head: str
    """What precedes the weight's name: "_"."""
    tail: str
    """What follows it: "_qdata"."""
    scheme_index: int


def _list_anchors(scheme: QuantizationScheme) -> tuple[str, ...]:
    """Return alternative parts of which every complete layer of the scheme has one."""
    choice = next(part for part in scheme.required if part != NAME)
    return tuple(choice.split("|"))


def _index_parts() -> tuple[dict[str, list[int]], tuple[_PartPattern, ...]]:
    """Return the parts that show a layer: last segment -> schemes, and patterns of the others."""
    segments: dict[str, list[int]] = {}
    patterns: list[_PartPattern] = []
    for index, scheme in enumerate(SCHEMES):
        for part in dict.fromkeys((*scheme.required_parts, *scheme.markers)):
            if part == NAME:
                continue
            if NAME in part:
                head, _, tail = part.partition(NAME)
                patterns.append(_PartPattern(head, tail, index))
            else:
                segments.setdefault(part, []).append(index)
    return segments, tuple(patterns)


_SEGMENTS, _PATTERNS = _index_parts()
_TAILS: Final = tuple({pattern.tail for pattern in _PATTERNS})
_SEGMENT_TAILS: Final = tuple({tail.rpartition(".")[2] for tail in _TAILS})
"""How the last segment of a key ends that ends in one of `_TAILS`."""


def find_state_quantization(state: StateDict, other_places: Iterable[str] = ()) -> QuantizationInfo:
    """Return the quantised weights of a state.

    Args:
        state: the state.
        other_places: places of other states within it, where packed parameters are described.
    """
    other_keys = (*state.non_tensors, *other_places)
    return find_quantization(state.tensors, state.last_segments, other_keys)


def find_module_quantization(module: ModuleInfo) -> QuantizationInfo:
    """Return the quantised weights of a module, by what its state_dict() has."""
    tensors = {key: saved.tensor for key, saved in module.saved_tensors.items()}
    return find_quantization(tensors, collect_last_segments(tensors), module.non_tensors)


def find_quantization(
    tensors: Tensors, last_segments: Collection[str], other_keys: Iterable[str] = ()
) -> QuantizationInfo:
    """Return the quantised weights among some tensors.

    Args:
        tensors: by key.
        last_segments: those of their keys.
        other_keys: keys without a tensor.
    """
    other_key_list = tuple(other_keys)
    is_candidate = any(s in _SEGMENTS or s.endswith(_SEGMENT_TAILS) for s in last_segments)
    candidates = _find_candidates(tensors) if is_candidate else {}
    layers = [*_find_packed_layers(tensors, other_key_list), *_find_complete(candidates, tensors)]
    counts = Counter(layer.scheme.name for layer in layers)
    consumed_keys = {key for layer in layers for key in layer.keys.values()}
    incomplete_layers = _find_incomplete(candidates, tensors, consumed_keys, counts)
    layers += incomplete_layers
    consumed_keys |= {key for layer in incomplete_layers for key in layer.keys.values()}
    if not layers:
        return QuantizationInfo()
    layers += _find_unscaled(layers, tensors, consumed_keys, counts)
    schemes = {layer.scheme.name: layer.scheme for layer in layers}
    file_keys = {key for scheme in schemes.values() for key in scheme.file_keys}
    side_keys = frozenset(
        key
        for key in (*tensors, *other_key_list)
        if key not in consumed_keys and key.rpartition(".")[2] in file_keys
    )
    return QuantizationInfo(tuple(layers), side_keys)


def _find_candidates(tensors: Tensors) -> dict[_Place, list[int]]:
    """Return the places where a key looks like a part, with the schemes that it may be of."""
    candidates: dict[_Place, set[int]] = {}
    for key in tensors:
        prefix, _, last_segment = key.rpartition(".")
        for index in _SEGMENTS.get(last_segment, ()):
            candidates.setdefault((prefix, _WEIGHT), set()).add(index)
        if key.endswith(_TAILS):
            for place, index in _match_patterns(key):
                candidates.setdefault(place, set()).add(index)
    return {place: sorted(indices) for place, indices in candidates.items()}


def _match_patterns(key: str) -> Iterator[tuple[_Place, int]]:
    for pattern in _PATTERNS:
        if key.endswith(pattern.tail):
            prefix, _, name = key[: len(key) - len(pattern.tail)].rpartition(".")
            if name.startswith(pattern.head) and len(name) > len(pattern.head):
                yield (prefix, name[len(pattern.head) :]), pattern.scheme_index


def _find_complete(
    candidates: Mapping[_Place, list[int]], tensors: Tensors
) -> Iterator[QuantizedLayer]:
    """Yield the layers that have all that their scheme requires, whether or not it fits."""
    formats: dict[object, WeightFormat] = {}
    for (prefix, name), indices in candidates.items():
        for index in indices:
            scheme = SCHEMES[index]
            if not _has_required_parts(scheme, prefix, name, tensors):
                continue
            parts = _select_parts(scheme, prefix, name, tensors)
            if parts is None:
                continue
            if scheme.claims is not None and not scheme.claims(parts):
                continue
            shapes = (index, *((part, t.shape, t.dtype) for part, t in parts.items()))
            weight_format = formats.get(shapes) or _describe_weight(scheme, parts)
            if not scheme.varies_in_settings:
                formats[shapes] = weight_format
            keys = {part: tensor.key for part, tensor in parts.items()}
            yield QuantizedLayer(scheme, prefix, name, keys, weight_format)
            break


def _has_required_parts(
    scheme: QuantizationScheme, prefix: str, name: str, tensors: Tensors
) -> bool:
    return all(
        any(format_part_key(part, prefix, name) in tensors for part in choice.split("|"))
        for choice in scheme.required
    )


def _describe_weight(scheme: QuantizationScheme, parts: Parts) -> WeightFormat:
    return scheme.describe_weight(parts) if scheme.describe_weight else WeightFormat()


def _select_parts(
    scheme: QuantizationScheme, prefix: str, name: str, tensors: Tensors
) -> Parts | None:
    """Return the parts that are there; None if one has a dtype that the scheme does not have."""
    parts: dict[str, TensorInfo] = {}
    for part in scheme.parts:
        tensor = tensors.get(format_part_key(part, prefix, name))
        if tensor is None:
            continue
        if part in scheme.dtypes and tensor.dtype not in scheme.dtypes[part]:
            return None
        parts[part] = tensor
    return parts


def _list_missing_parts(scheme: QuantizationScheme, parts: Parts) -> list[str]:
    """Return the required parts that are not there, of alternatives the first."""
    choices = (choice.split("|") for choice in scheme.required)
    return [choice[0] for choice in choices if not any(part in parts for part in choice)]


def _find_incomplete(
    candidates: Mapping[_Place, list[int]],
    tensors: Tensors,
    consumed_keys: set[str],
    counts: Mapping[str, int],
) -> list[QuantizedLayer]:
    """Return the layers that lack a required tensor; `counts` are of complete ones, by scheme."""
    possible_layers: list[QuantizedLayer] = []
    for (prefix, name), indices in candidates.items():
        # The scheme of the complete layers explains a broken one best.
        order = sorted(indices, key=lambda index: -counts.get(SCHEMES[index].name, 0))
        built = (_build_incomplete(SCHEMES[i], prefix, name, tensors, counts) for i in order)
        possible_layers += (
            layer
            for layer in built
            if layer is not None and consumed_keys.isdisjoint(layer.keys.values())
        )
    layers: list[QuantizedLayer] = []
    known_keys = set(consumed_keys)
    for layer in sorted(possible_layers, key=lambda layer: -len(layer.keys)):
        if known_keys.isdisjoint(layer.keys.values()):
            layers.append(layer)
            known_keys |= {*layer.keys.values()}
    return layers


def _build_incomplete(
    scheme: QuantizationScheme,
    prefix: str,
    name: str,
    tensors: Tensors,
    counts: Mapping[str, int],
) -> QuantizedLayer | None:
    """Return the layer that has a marker of the scheme and lacks a part; None if there is none."""
    if not counts.get(scheme.name) and not any(
        format_part_key(part, prefix, name) in tensors for part in scheme.markers
    ):
        return None
    parts = _select_parts(scheme, prefix, name, tensors)
    if not parts or not _shows_layer(scheme, name, parts, is_usual=bool(counts.get(scheme.name))):
        return None
    missing_parts = _list_missing_parts(scheme, parts)
    if not missing_parts:
        return None
    return QuantizedLayer(
        scheme,
        prefix,
        name,
        {part: tensor.key for part, tensor in parts.items()},
        lacking_keys=tuple(format_part_key(part, prefix, name) for part in missing_parts),
    )


def _shows_layer(scheme: QuantizationScheme, name: str, parts: Parts, *, is_usual: bool) -> bool:
    """Whether incomplete parts show a layer: by a marker, or in a file of the scheme by less.

    Other tensors of a layer may look like parts of a weight of another name: "input_scale".
    """
    others = {*scheme.optional, *scheme.file_keys}
    own_parts = [
        part for part in parts if NAME not in part or part.replace(NAME, name) not in others
    ]
    # A marker alone, without the weight, may be another class's tensor of that name.
    is_alone = NAME in scheme.required and NAME not in parts and len(own_parts) == 1
    if any(part in scheme.markers for part in own_parts) and not (is_alone and not is_usual):
        return True
    required = [part for part in own_parts if part != NAME and part not in scheme.optional]
    return is_usual and (len(required) > 1 or any(NAME in part for part in required))


def _find_unscaled(
    layers: list[QuantizedLayer],
    tensors: Tensors,
    consumed_keys: set[str],
    counts: Mapping[str, int],
) -> Iterator[QuantizedLayer]:
    """Yield weights in the dtype of quantised ones, without the scale that others have.

    One of 8 bits may have been cast only; another is believed where others of its name have more.
    """
    schemes = {
        dtype: layer.scheme
        for layer in sorted(layers, key=lambda layer: counts.get(layer.scheme.name, 0))
        if layer.is_complete and layer.scheme.required[:1] == (NAME,)
        for dtype in layer.scheme.dtypes.get(NAME, ())
    }
    if not schemes:
        return
    usual_patterns = {mask_layer_numbers(layer.weight_key) for layer in layers if layer.is_complete}
    for key, tensor in tensors.items():
        scheme = schemes.get(tensor.dtype)
        if scheme is None or key in consumed_keys or len(tensor.shape) < 2:
            continue
        is_usual = mask_layer_numbers(key) in usual_patterns
        if not is_usual and not (tensor.dtype == "int8" or tensor.dtype.startswith("float8")):
            continue
        prefix, _, name = key.rpartition(".")
        lacking_key = format_part_key(_list_anchors(scheme)[0], prefix, name)
        yield QuantizedLayer(
            scheme,
            prefix,
            name,
            {NAME: key},
            lacking_keys=(lacking_key,),
            is_probable=not is_usual,
        )


def _find_packed_layers(tensors: Tensors, other_keys: tuple[str, ...]) -> Iterator[QuantizedLayer]:
    """Yield layers that one key or class of tensor shows: of torch.ao, and torchao's subclasses."""
    prefixes = {
        _find_packed_prefix(key): _choose_packed_scheme(key)
        for key in _select_containing(_PACKED_NAMES, (*tensors, *other_keys))
    }
    for key, tensor in tensors.items():
        if tensor.layout == "quantized":
            prefixes.setdefault(key.rpartition(".")[0], EAGER)
        elif tensor.wrapper and tensor.wrapper.startswith("torchao."):
            prefix, _, name = key.rpartition(".")
            format_ = WeightFormat(shape=tensor.shape, numel=tensor.numel)
            yield QuantizedLayer(TORCHAO, prefix, name, {NAME: key}, format_)
    prefixes = {prefix: scheme for prefix, scheme in prefixes.items() if scheme is not None}
    if not prefixes:
        return
    keys_by_prefix: dict[str, dict[str, str]] = {}
    for key in (*tensors, *other_keys):
        prefix = _find_packed_prefix(key)
        if prefix in prefixes:
            keys_by_prefix.setdefault(prefix, {})[key] = key
    for prefix, keys in keys_by_prefix.items():
        scheme = prefixes[prefix]
        if scheme is not None:
            yield QuantizedLayer(scheme, prefix, _WEIGHT, keys)


def _select_containing(names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the keys that contain one of `names`, which nearly no checkpoint has."""
    all_keys = "\n".join(keys)
    present_names = [name for name in names if name in all_keys]
    if not present_names:
        return []
    return [key for key in keys if any(name in key for name in present_names)]


def _choose_packed_scheme(key: str) -> QuantizationScheme | None:
    segments = key.split(".")
    if "_packed_params" in segments:
        return EAGER
    return None if _OBSERVER_NAMES.isdisjoint(segments) else OBSERVED


def _find_packed_prefix(key: str) -> str:
    """Return the prefix of the layer of `key`, without observers and packed parameters."""
    segments = key.split(".")
    for index, segment in enumerate(segments):
        if segment == "_packed_params" or segment in _OBSERVER_NAMES:
            return ".".join(segments[:index])
    return ".".join(segments[:-1])

"""Quantised layers -> phrases and groups: schemes, bits and what shares a scale."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from ckptool.compare.quantization.difference import QuantizationDifference
from ckptool.compare.quantization.scheme import QuantizedLayer
from ckptool.compare.rename_search.key_subtrees import mask_layer_numbers
from ckptool.model import natural_sort_key

_MAX_FORMATS: Final = 3
"""Formats of one scheme in one phrase."""


class QuantizedGroup(Struct, frozen=True):
    """Quantised weights that differ in layer numbers only."""

    pattern: str
    """Key of the weight with `*` for layer numbers; the key itself if it is one."""
    layers: tuple[QuantizedLayer, ...]

    @property
    def first(self) -> QuantizedLayer:
        return self.layers[0]


def group_layers(layers: Iterable[QuantizedLayer]) -> tuple[QuantizedGroup, ...]:
    """Group layers by scheme, format, what they lack and key without layer numbers."""
    groups: dict[object, list[QuantizedLayer]] = {}
    for layer in layers:
        key = mask_layer_numbers(layer.weight_key)
        absent_parts = tuple(map(mask_layer_numbers, layer.lacking_keys))
        weight_format = layer.format
        facts = (weight_format.phrase, weight_format.misfit, absent_parts, layer.is_probable)
        groups.setdefault((layer.scheme.name, key, facts), []).append(layer)
    return tuple(
        QuantizedGroup(
            mask_layer_numbers(members[0].weight_key)
            if len(members) > 1
            else members[0].weight_key,
            tuple(members),
        )
        for members in sorted(
            groups.values(), key=lambda members: natural_sort_key(members[0].weight_key)
        )
    )


def format_sides(difference: QuantizationDifference) -> tuple[str, str]:
    """Return what the file is and what the module is, to follow "the file is" and "the module"."""
    module_text = format_schemes(difference.module_layers) or "not quantised"
    if difference.unscaled_dtype:
        module_text = f"has its weights in {difference.unscaled_dtype} without their scales"
    return format_schemes(difference.file_layers) or "not quantised", module_text


def format_schemes(layers: Iterable[QuantizedLayer]) -> str:
    """Return "GPTQ (4 bits, groups of 128) and AWQ"; "" without layers."""
    formats: dict[str, Counter[str]] = {}
    for layer in layers:
        counts = formats.setdefault(layer.scheme.name, Counter())
        if layer.format.phrase:
            counts[layer.format.phrase] += 1
    return " and ".join(_format_scheme(name, counts) for name, counts in formats.items())


def _format_scheme(name: str, counts: Counter[str]) -> str:
    phrases = [phrase for phrase, _ in counts.most_common(_MAX_FORMATS)]
    more = len(counts) - len(phrases)
    text = "; ".join(phrases) + (f"; and {more} more" if more > 0 else "")
    return f"{name} ({text})" if text else name

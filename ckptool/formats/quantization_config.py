"""Folder of a checkpoint -> QuantizationDeclaration: what its configuration says of quantisation.

Facts only: nothing that the configuration names is imported or chosen.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from ckptool.errors import ReadError
from ckptool.formats.files.source import open_source
from ckptool.formats.limits import Limits
from ckptool.formats.strict_json import JsonReader
from ckptool.model import QuantizationDeclaration
from ckptool.phrases import truncate

_MODEL_CONFIG: Final = "config.json"
_MODEL_CONFIG_KEYS: Final = frozenset({"model_type", "architectures", "_class_name"})
"""Keys of which a configuration of transformers or diffusers has one."""
_SECTIONS: Final = ("quantization_config", "compression_config", "quantization")
_OTHER_FILES: Final = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
    "quantization_map.json": "quanto",
}
"""Files of older or other writers, beside a config.json that says nothing -> quant_method."""
_BITS_NAMES: Final = frozenset({"bits", "w_bit", "nbits", "num_bits"})
_GROUP_NAMES: Final = frozenset({"group_size", "q_group_size"})
_ACTIVATION_SECTIONS: Final = frozenset(
    {"input_activations", "output_activations", "kv_cache_scheme", "act_quant_params", "dynamic"}
)
"""Sections whose bits are not those of weights, or are those of a few layers."""
_MAX_NBYTES: Final = 8 << 20
_MAX_DEPTH: Final = 12
_MAX_NAME_CHARS: Final = 60


def read_declaration(folder: Path, limits: Limits) -> QuantizationDeclaration | None:
    """Return what the configuration in `folder` declares; None without one, or if it is damaged."""
    config = _read_object(folder / _MODEL_CONFIG, limits)
    if placed_section := _find_section(config):
        place, section = placed_section
        return replace(_build_declaration(_MODEL_CONFIG, section, ""), place=place)
    for name, method in _OTHER_FILES.items():
        other = _read_object(folder / name, limits)
        if other is not None:
            return _build_declaration(name, other, method)
    if config is not None and _MODEL_CONFIG_KEYS & config.keys():
        return QuantizationDeclaration(_MODEL_CONFIG)
    return None


def _read_object(path: Path, limits: Limits) -> Mapping[str, Any] | None:
    try:
        if not path.is_file():
            return None
        with open_source(path) as source:
            if source.nbytes > _MAX_NBYTES:
                return None
            reader = JsonReader(path, source.read, source.nbytes, limits, "the configuration")
            value = reader.read_value(_MAX_NBYTES)
    except (ReadError, OSError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _find_section(
    config: Mapping[str, Any] | None,
) -> tuple[tuple[str, ...], Mapping[str, Any]] | None:
    """Return the section on quantisation and its place, also in a model within ("text_config")."""
    if config is None:
        return None
    inner = [((key,), value) for key, value in config.items() if key.endswith("_config")]
    for place, owner in (((), config), *(pair for pair in inner if isinstance(pair[1], dict))):
        for name in _SECTIONS:
            section = owner.get(name)
            if isinstance(section, dict) and section:
                return (*place, name), section
    return None


def _build_declaration(
    file_name: str, section: Mapping[str, Any], default_method: str
) -> QuantizationDeclaration:
    numbers = [*_iter_numbers(section, 0)]
    bits = {number for name, number in numbers if name in _BITS_NAMES and 0 < number <= 64}
    groups = {number for name, number in numbers if name in _GROUP_NAMES}
    for name, number in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if section.get(name) is True:
            bits.add(number)
    return QuantizationDeclaration(
        file_name,
        truncate(
            str(section.get("quant_method") or default_method or _guess_method(section)),
            _MAX_NAME_CHARS,
        ),
        bits.pop() if len(bits) == 1 else 0,
        groups.pop() if len(groups) == 1 else 0,
    )


def _guess_method(section: Mapping[str, Any]) -> str:
    """Return the method of a section that names none: bitsandbytes' early files, and MLX."""
    if section.keys() & {"load_in_4bit", "load_in_8bit"}:
        return "bitsandbytes"
    if "config_groups" in section:
        return "compressed-tensors"
    return "mlx" if section.keys() >= {"bits", "group_size"} else "a method without a name"


def _iter_numbers(section: Mapping[str, Any], depth: int) -> Iterator[tuple[str, int]]:
    """Yield the integers of the section and of those within it, by name."""
    for name, value in section.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            yield name, value
        elif isinstance(value, dict) and name not in _ACTIVATION_SECTIONS and depth < _MAX_DEPTH:
            yield from _iter_numbers(value, depth + 1)

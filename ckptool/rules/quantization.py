"""ModuleDiff -> hits: file and module are quantised in different ways (CK219)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final

from msgspec import Struct

from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import TensorInfo, natural_sort_key
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit


class QuantizationFamily(Struct, frozen=True):
    """One library's format of quantised weights, with the name that messages use."""

    name: str
    remedy: str
    """How to obtain a module that loads these weights, as a clause of CK219's fix."""


_EAGER: Final = QuantizationFamily(
    "quantised by torch.ao.quantization",
    "quantise the module in the same way first: torch.ao.quantization.quantize_dynamic(module, "
    "...), or prepare() and convert() with the same qconfig",
)
_OBSERVED: Final = QuantizationFamily(
    "prepared for quantisation (observers, fake quantisation)",
    "torch.ao.quantization.prepare_qat(module), or prepare(module), with the same qconfig first",
)
_BITS_8: Final = QuantizationFamily(
    "8-bit of bitsandbytes",
    "build it with bitsandbytes.nn.Linear8bitLt (transformers: BitsAndBytesConfig(load_in_8bit="
    "True))",
)
_BITS_4: Final = QuantizationFamily(
    "4-bit of bitsandbytes",
    "build it with bitsandbytes.nn.Linear4bit (transformers: BitsAndBytesConfig(load_in_4bit="
    "True))",
)
_GPTQ: Final = QuantizationFamily(
    "GPTQ", "load it with a GPTQ library, or take the unquantised file"
)
_AWQ: Final = QuantizationFamily("AWQ", "load it with an AWQ library, or take the unquantised file")
_PACKED: Final = QuantizationFamily(
    "compressed-tensors, packed", "load it with compressed-tensors, or take the unquantised file"
)
_SCALED: Final = QuantizationFamily(
    "8-bit with a scale for each weight",
    "load it with the library that wrote it, or multiply each weight by its scale first",
)
_TORCHAO: Final = QuantizationFamily("torchao", "torchao.quantization.quantize_(module, ...) first")

_OBSERVER_NAMES: Final = frozenset({"activation_post_process", "weight_fake_quant"})
_BITS_4_STATE_NAMES: Final = frozenset({"absmax", "quant_map", "nested_absmax", "nested_quant_map"})
_NARROW_DTYPES: Final = ("int8", "uint8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz")


class QuantizedSubmodule(Struct, frozen=True):
    """A submodule whose keys identify it as quantised, and by which family."""

    family: QuantizationFamily
    owner: str
    key: str
    """The key that identifies the family."""


@check(
    ModuleDiff,
    Rule(
        code="CK219",
        name="quantisation-family-mismatch",
        level=Level.ERROR,
        summary="the file is {have} and the module {want}",
        detail="{count} of its modules differ, the first by `{key}`",
        why=(
            "A quantised layer has other keys and other dtypes than the float layer. With "
            "strict=False the float layer stays at random, or takes integers for weights."
        ),
        fix="File and module must be quantised alike. {remedy}.",
        example=(
            "model = nn.Sequential(nn.Linear(2, 2))\n"
            "quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})\n"
            "model.load_state_dict(quantised.state_dict())"
        ),
    ),
)
def find_quantization_mismatch(diff: ModuleDiff) -> Iterator[RuleHit]:
    actual, expected = _compare_quantization(diff)
    if not actual and not expected:
        return
    first = (actual or expected)[0]
    keys = sorted(find_quantized_keys(diff), key=natural_sort_key)
    remedy = (
        f"To load this file, {actual[0].family.remedy}"
        if actual
        else "Load the float file into the float module, and quantise that afterwards"
    )
    yield hit(
        first.key,
        None,
        keys,
        have=_format_families(actual),
        want=_format_families(expected),
        count=len({submodule.owner for submodule in (*actual, *expected)}),
        remedy=remedy,
        keys=keys,
    )


def _format_families(submodules: Iterable[QuantizedSubmodule]) -> str:
    return (
        " and ".join(dict.fromkeys(submodule.family.name for submodule in submodules))
        or "not quantised"
    )


def _compare_quantization(
    diff: ModuleDiff,
) -> tuple[list[QuantizedSubmodule], list[QuantizedSubmodule]]:
    """Return the submodules quantised in the file only, and those in the module only."""
    state, module = diff.state, diff.module
    state_prefix = f"{state.at}." if state.at else ""
    state_places = [
        other_state.at.removeprefix(state_prefix)
        for other_state in diff.checkpoint.states
        if other_state is not state
    ]
    actual = _find_quantized_submodules(state.tensors, (*state.non_tensors, *state_places))
    expected = _find_quantized_submodules(
        {key: module_tensor.tensor for key, module_tensor in module.saved_tensors.items()},
        module.non_tensors,
    )
    expected_pairs = {(submodule.family.name, submodule.owner) for submodule in expected}
    actual_pairs = {(submodule.family.name, submodule.owner) for submodule in actual}
    return (
        [
            submodule
            for submodule in actual
            if (submodule.family.name, submodule.owner) not in expected_pairs
        ],
        [
            submodule
            for submodule in expected
            if (submodule.family.name, submodule.owner) not in actual_pairs
        ],
    )


def find_quantized_keys(diff: ModuleDiff) -> frozenset[str]:
    """Return the missing and unexpected keys that CK219 explains; other rules skip them."""
    actual, expected = _compare_quantization(diff)
    if not actual and not expected:
        return frozenset()
    owners = {submodule.owner for submodule in (*actual, *expected)}
    has_eager = any(submodule.family is _EAGER for submodule in (*actual, *expected))
    keys = (*diff.missing_keys, *diff.unexpected_keys)
    return frozenset(
        key for key in keys if _extract_layer_prefix(key) in owners or (has_eager and _is_stub(key))
    )


def _is_stub(key: str) -> bool:
    """Whether the key may belong to a QuantStub, which saves only a scale and a zero point."""
    return key.rpartition(".")[2] in {"scale", "zero_point"}


_QUANTIZED_KEY_PATTERN: Final = re.compile(
    r"_packed_params|activation_post_process|weight_fake_quant|SCB|absmax|quant_map|quant_state"
    r"|qweight|weight_packed|weight_scale"
)


def _may_be_quantized(tensor: TensorInfo) -> bool:
    """Whether the tensor may belong to a quantised layer; a cheap test before the grouping."""
    has_special_layout = tensor.layout == "quantized" or bool(tensor.wrapper)
    return has_special_layout or _QUANTIZED_KEY_PATTERN.search(tensor.key) is not None


def _find_quantized_submodules(
    tensors: Mapping[str, TensorInfo], other_keys: Iterable[str]
) -> list[QuantizedSubmodule]:
    """Return the quantised submodules; `other_keys` are keys without a tensor."""
    if not any("_packed_params" in key for key in other_keys) and not any(
        map(_may_be_quantized, tensors.values())
    ):
        return []
    by_owner: dict[str, dict[str, str]] = {}
    for key in (*tensors, *other_keys):
        owner = _extract_layer_prefix(key)
        by_owner.setdefault(owner, {})[key.removeprefix(f"{owner}.")] = key
    candidates = (
        (owner, names, _identify_family(names, tensors)) for owner, names in by_owner.items()
    )
    return [
        QuantizedSubmodule(match[0], owner, names[match[1]])
        for owner, names, match in candidates
        if match
    ]


@lru_cache(maxsize=1 << 16)
def _extract_layer_prefix(key: str) -> str:
    """Return the prefix of the layer of `key`, without observers and packed parameters."""
    segments = key.split(".")
    for index, segment in enumerate(segments):
        if segment == "_packed_params" or segment in _OBSERVER_NAMES:
            return ".".join(segments[:index])
    if len(segments) > 2 and segments[-2] == "weight" and segments[-1] in _BITS_4_STATE_NAMES:
        return ".".join(segments[:-2])
    if ".quant_state." in key:
        return key.split(".quant_state.", maxsplit=1)[0].rpartition(".")[0]
    return ".".join(segments[:-1])


def _identify_family(
    names: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> tuple[QuantizationFamily, str] | None:
    """Return the family of a layer and the name that identifies it; None if not quantised.

    Args:
        names: name within the layer -> key.
        tensors: all tensors by key.
    """
    for name, key in names.items():
        family = _identify_family_by_key(name, tensors.get(key))
        if family is not None:
            return family, name
    if names.keys() >= {"qweight", "qzeros", "scales"}:
        return (_GPTQ if "g_idx" in names else _AWQ), "qweight"
    if names.keys() >= {"weight_packed", "weight_scale"}:
        return _PACKED, "weight_packed"
    weight = tensors.get(names.get("weight", ""))
    if weight is not None and weight.dtype in _NARROW_DTYPES:
        scale = next(
            (
                scale_name
                for scale_name in ("weight_scale", "weight_scale_inv")
                if scale_name in names
            ),
            None,
        )
        if "SCB" in names:
            return _BITS_8, "SCB"
        return (_SCALED, scale) if scale else None
    return None


def _identify_family_by_key(name: str, tensor: TensorInfo | None) -> QuantizationFamily | None:
    """Return the family that one name or tensor identifies, None if it needs several names."""
    segments = name.split(".")
    if "_packed_params" in segments or (tensor is not None and tensor.layout == "quantized"):
        return _EAGER
    if _OBSERVER_NAMES & {*segments}:
        return _OBSERVED
    if ".quant_state.bitsandbytes__" in f".{name}" or (
        len(segments) == 2 and segments[0] == "weight" and segments[1] in _BITS_4_STATE_NAMES
    ):
        return _BITS_4
    wrapper = tensor.wrapper if tensor is not None else ""
    return _TORCHAO if wrapper.startswith("torchao.") else None

"""ModuleDiff -> hits: file and module are quantised in different ways (CK219)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final

from msgspec import Struct

from ckptool.compare import Loading
from ckptool.model import TensorInfo
from ckptool.rules.registry import Hit, Level, Rule, check, hit


class Family(Struct, frozen=True):
    """One library's format of quantised weights, with the name that messages use."""

    name: str
    remedy: str
    """How to obtain a module that loads these weights, as a clause of CK219's fix."""


_EAGER: Final = Family(
    "quantised by torch.ao.quantization",
    "quantise the module in the same way first: torch.ao.quantization.quantize_dynamic(module, "
    "...), or prepare() and convert() with the same qconfig",
)
_OBSERVED: Final = Family(
    "prepared for quantisation (observers, fake quantisation)",
    "torch.ao.quantization.prepare_qat(module), or prepare(module), with the same qconfig first",
)
_BITS_8: Final = Family(
    "8-bit of bitsandbytes",
    "build it with bitsandbytes.nn.Linear8bitLt (transformers: BitsAndBytesConfig(load_in_8bit="
    "True))",
)
_BITS_4: Final = Family(
    "4-bit of bitsandbytes",
    "build it with bitsandbytes.nn.Linear4bit (transformers: BitsAndBytesConfig(load_in_4bit="
    "True))",
)
_GPTQ: Final = Family("GPTQ", "load it with a GPTQ library, or take the unquantised file")
_AWQ: Final = Family("AWQ", "load it with an AWQ library, or take the unquantised file")
_PACKED: Final = Family(
    "compressed-tensors, packed", "load it with compressed-tensors, or take the unquantised file"
)
_SCALED: Final = Family(
    "8-bit with a scale for each weight",
    "load it with the library that wrote it, or multiply each weight by its scale first",
)
_TORCHAO: Final = Family("torchao", "torchao.quantization.quantize_(module, ...) first")

_OBSERVERS: Final = frozenset({"activation_post_process", "weight_fake_quant"})
_STATE_4: Final = frozenset({"absmax", "quant_map", "nested_absmax", "nested_quant_map"})
_NARROW: Final = ("int8", "uint8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz")


class Marked(Struct, frozen=True):
    """A submodule whose keys identify it as quantised, and by which family."""

    family: Family
    owner: str
    key: str
    """The key that identifies the family."""


@check(
    Loading,
    Rule(
        code="CK219",
        name="quantisation-family-mismatch",
        level=Level.ERROR,
        message="the file is {have} and the module {want}: {count} of its modules differ, the "
        "first by `{key}`",
        why="A quantised layer has other keys and other dtypes than the float layer. With "
        "strict=False the float layer stays at random, or takes integers for weights.",
        fix="File and module must be quantised alike. {remedy}.",
        example="model = nn.Sequential(nn.Linear(2, 2))\n"
        "quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})\n"
        "model.load_state_dict(quantised.state_dict())",
    ),
)
def quantisation_mismatch(loading: Loading) -> Iterator[Hit]:
    have, want = _differing(loading)
    if not have and not want:
        return
    first = (have or want)[0]
    remedy = (
        f"To load this file, {have[0].family.remedy}"
        if have
        else "Load the float file into the float module, and quantise that afterwards"
    )
    yield hit(
        first.key,
        have=_families(have),
        want=_families(want),
        count=len({one.owner for one in (*have, *want)}),
        remedy=remedy,
        keys=sorted(quantised_keys(loading)),
    )


def _families(marked: Iterable[Marked]) -> str:
    return " and ".join(dict.fromkeys(one.family.name for one in marked)) or "not quantised"


def _differing(loading: Loading) -> tuple[list[Marked], list[Marked]]:
    """Return the submodules quantised in the file only, and those in the module only."""
    state, module = loading.state, loading.module
    inside = f"{state.at}." if state.at else ""
    places = [s.at.removeprefix(inside) for s in loading.checkpoint.states if s is not state]
    have = _marks(state.tensors, (*state.others, *places))
    want = _marks({key: held.tensor for key, held in module.saved.items()}, module.others)
    there = {(one.family.name, one.owner) for one in want}
    here = {(one.family.name, one.owner) for one in have}
    return (
        [one for one in have if (one.family.name, one.owner) not in there],
        [one for one in want if (one.family.name, one.owner) not in here],
    )


def quantised_keys(loading: Loading) -> frozenset[str]:
    """Return the missing and unexpected keys that CK219 explains; other rules skip them."""
    have, want = _differing(loading)
    if not have and not want:
        return frozenset()
    owners = {one.owner for one in (*have, *want)}
    eager = any(one.family is _EAGER for one in (*have, *want))
    keys = (*loading.missing_keys, *loading.unexpected_keys)
    return frozenset(key for key in keys if _owner(key) in owners or (eager and _is_stub(key)))


def _is_stub(key: str) -> bool:
    """Whether the key may belong to a QuantStub, which saves only a scale and a zero point."""
    return key.rpartition(".")[2] in {"scale", "zero_point"}


_TELLING: Final = re.compile(
    r"_packed_params|activation_post_process|weight_fake_quant|SCB|absmax|quant_map|quant_state"
    r"|qweight|weight_packed|weight_scale"
)


def _tells(tensor: TensorInfo) -> bool:
    """Whether the tensor may belong to a quantised layer; a cheap test before the grouping."""
    odd = tensor.layout == "quantized" or bool(tensor.wrapper)
    return odd or _TELLING.search(tensor.key) is not None


def _marks(tensors: Mapping[str, TensorInfo], others: Iterable[str]) -> list[Marked]:
    """Return the quantised submodules; `other_keys` are keys without a tensor."""
    if not any("_packed_params" in key for key in others) and not any(
        map(_tells, tensors.values())
    ):
        return []
    by_owner: dict[str, dict[str, str]] = {}
    for key in (*tensors, *others):
        owner = _owner(key)
        by_owner.setdefault(owner, {})[key.removeprefix(f"{owner}.")] = key
    found = ((owner, names, _told(names, tensors)) for owner, names in by_owner.items())
    return [Marked(told[0], owner, names[told[1]]) for owner, names, told in found if told]


@lru_cache(maxsize=1 << 16)
def _owner(key: str) -> str:
    """Return the prefix of the layer of `key`, without observers and packed parameters."""
    steps = key.split(".")
    for number, step in enumerate(steps):
        if step == "_packed_params" or step in _OBSERVERS:
            return ".".join(steps[:number])
    if len(steps) > 2 and steps[-2] == "weight" and steps[-1] in _STATE_4:
        return ".".join(steps[:-2])
    if ".quant_state." in key:
        return key.split(".quant_state.", maxsplit=1)[0].rpartition(".")[0]
    return ".".join(steps[:-1])


def _told(names: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> tuple[Family, str] | None:
    """Return the family of a layer and the name that identifies it; None if not quantised.

    Args:
        names: name within the layer -> key.
        tensors: all tensors by key.
    """
    for name, key in names.items():
        family = _by_one(name, tensors.get(key))
        if family is not None:
            return family, name
    if names.keys() >= {"qweight", "qzeros", "scales"}:
        return (_GPTQ if "g_idx" in names else _AWQ), "qweight"
    if names.keys() >= {"weight_packed", "weight_scale"}:
        return _PACKED, "weight_packed"
    weight = tensors.get(names.get("weight", ""))
    if weight is not None and weight.dtype in _NARROW:
        scale = next((n for n in ("weight_scale", "weight_scale_inv") if n in names), None)
        if "SCB" in names:
            return _BITS_8, "SCB"
        return (_SCALED, scale) if scale else None
    return None


def _by_one(name: str, tensor: TensorInfo | None) -> Family | None:
    """Return the family that one name or tensor identifies, None if it needs several names."""
    steps = name.split(".")
    if "_packed_params" in steps or (tensor is not None and tensor.layout == "quantized"):
        return _EAGER
    if _OBSERVERS & {*steps}:
        return _OBSERVED
    if ".quant_state.bitsandbytes__" in f".{name}" or (
        len(steps) == 2 and steps[0] == "weight" and steps[1] in _STATE_4
    ):
        return _BITS_4
    wrapper = tensor.wrapper if tensor is not None else ""
    return _TORCHAO if wrapper.startswith("torchao.") else None

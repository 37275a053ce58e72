"""Adapter's tensors x base's weights -> merged weights, by arithmetic of our own in float64.

It shares nothing with peft, whose merge is held to it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, Final

from ckptool.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

KEY_PREFIX: Final = "base_model.model."
ADAPTER_NAME: Final = "default"
"""Name that the adapter has in the model, and that keys of its file may contain."""
_DEFAULT_NUMBER: Final = 8
"""What peft takes for a rank or an alpha that the configuration does not give."""
_PARTS: Final = re.compile(r"(?P<path>.+)\.(?P<part>(?:lora|hada|lokr|ia3)_.+)")


@dataclass(frozen=True, slots=True, eq=False)
class MergedTensor:
    """What a tensor of the base is with the adapter merged into it."""

    value: "Tensor"
    """In float64."""
    scale: float
    """Largest number that the arithmetic meets: rounding errors are in proportion to it."""


@dataclass(frozen=True, slots=True, eq=False)
class _AdaptedLayer:
    """One layer of the base, and what the adapter has for it."""

    path: str
    parts: Mapping[str, "Tensor"]
    """Tensors of the adapter, by their name behind the layer's path, in float64."""
    weight: "Tensor"
    """Weight of the base, in float64."""
    bias: "Tensor | None"
    is_transposed: bool
    """Whether the weight is stored as (in, out)."""
    fields: Mapping[str, Any]
    """Configuration of the adapter."""

    def find_field(self, name: str, pattern_name: str) -> float:
        """Return a number of the configuration, as the first pattern that fits gives it."""
        patterns = self.fields.get(pattern_name)
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            if re.match(rf"(.*\.)?({pattern})$", self.path) and isinstance(value, int | float):
                return value
        value = self.fields.get(name, _DEFAULT_NUMBER)
        return value if isinstance(value, int | float) else _DEFAULT_NUMBER

    def require_parts(self, *names: str) -> None:
        """Raise PlanError unless the adapter has these tensors for the layer, and no other."""
        others = sorted(self.parts.keys() ^ {*names})
        if others:
            raise PlanError(f"`{self.path}` has or lacks {', '.join(others)}")


def merge_tensors(
    peft_type: str,
    fields: Mapping[str, Any],
    adapter_state: Mapping[str, "Tensor"],
    base_state: Mapping[str, "Tensor"],
    is_transposed: Callable[[str], bool],
) -> dict[str, MergedTensor]:
    """Return the merged tensors of the base by key; of the others nothing is said.

    Args:
        peft_type: a key of `MERGE_RULES`.
        fields: configuration of the adapter.
        adapter_state: its tensors, with the keys of its file.
        base_state: tensors of the base.
        is_transposed: whether the layer at a path stores its weight as (in, out).

    Raises:
        PlanError: the adapter has tensors that the arithmetic does not know.
    """
    merge_layer = MERGE_RULES[peft_type]
    merged: dict[str, MergedTensor] = {}
    for layer in _iter_layers(fields, adapter_state, base_state, is_transposed):
        for name, tensor in merge_layer(layer).items():
            merged[f"{layer.path}.{name}"] = tensor
    return merged


def _iter_layers(
    fields: Mapping[str, Any],
    adapter_state: Mapping[str, "Tensor"],
    base_state: Mapping[str, "Tensor"],
    is_transposed: Callable[[str], bool],
) -> Iterator[_AdaptedLayer]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in adapter_state.items():
        match = _PARTS.fullmatch(key.removeprefix(KEY_PREFIX))
        if match is not None:
            layers.setdefault(match["path"], {})[_cut_adapter_name(match["part"])] = tensor.double()
    for path, parts in layers.items():
        weight, bias = base_state.get(f"{path}.weight"), base_state.get(f"{path}.bias")
        if weight is None:
            raise PlanError(f"`{path}` of the base has no weight of its own")
        yield _AdaptedLayer(
            path,
            parts,
            weight.double(),
            None if bias is None else bias.double(),
            is_transposed(path),
            fields,
        )


def _cut_adapter_name(part: str) -> str:
    """Return the name of a part without the adapter's, which peft accepts in files if it fits.

    "lora_A.default.weight" gives "lora_A.weight", and the magnitude of DoRA has no ".weight".
    """
    name = part.removesuffix(f".{ADAPTER_NAME}").replace(f".{ADAPTER_NAME}.", ".", 1)
    return name.removesuffix(".weight") if name.startswith("lora_magnitude_vector") else name


def _merge_lora(layer: _AdaptedLayer) -> dict[str, MergedTensor]:
    """W + s B A; of DoRA, rescaled so that each output has the magnitude that was learned."""
    magnitude = layer.parts.get("lora_magnitude_vector")
    delta, largest, bias = _compute_low_rank(layer, has_magnitude=magnitude is not None)
    merged = {"weight": _add(layer.weight, delta, largest)}
    if magnitude is not None:
        value = merged["weight"].value
        axis = 1 if layer.is_transposed or "lora_embedding_A" in layer.parts else 0
        shape = [-1 if dim == axis else 1 for dim in range(value.dim())]
        other_axes = [dim for dim in range(value.dim()) if dim != axis]
        norm = value.square().sum(dim=other_axes, keepdim=True).sqrt()
        factor = magnitude.reshape(shape) / norm
        scale = merged["weight"].scale * max(1.0, float(factor.abs().max()))
        merged["weight"] = MergedTensor(value * factor, scale)
    if bias is not None:
        if layer.bias is None:
            raise PlanError(f"`{layer.path}` of the base has no bias to merge one into")
        merged["bias"] = _add(layer.bias, bias, float(bias.abs().max()))
    return merged


def _compute_low_rank(
    layer: _AdaptedLayer, *, has_magnitude: bool
) -> "tuple[Tensor, float, Tensor | None]":
    """Return s B A in the shape of the weight, the largest number in it, and what a bias gains."""
    import torch

    extra: tuple[str, ...] = ("lora_magnitude_vector",) if has_magnitude else ()
    if "lora_embedding_A" in layer.parts:
        names = ("lora_embedding_A", "lora_embedding_B")
    else:
        names = ("lora_A.weight", "lora_B.weight")
        extra += tuple({"lora_B.bias"} & layer.parts.keys())
    layer.require_parts(*names, *extra)
    low, high = (layer.parts[name] for name in names)
    rank = low.shape[0]
    alpha = layer.find_field("lora_alpha", "alpha_pattern")
    scaling = alpha / (sqrt(rank) if layer.fields.get("use_rslora") else rank)
    if low.dim() > 2 and low.shape[1] != layer.weight.shape[1]:
        raise PlanError(f"`{layer.path}` is a convolution of several groups")
    equation = f"or,r{'iklm'[: low.dim() - 1]}->o{'iklm'[: low.dim() - 1]}"
    high = high.reshape(high.shape[0], rank)
    delta = scaling * torch.einsum(equation, high, low)
    largest = abs(scaling) * float(torch.einsum(equation, high.abs(), low.abs()).max())
    is_transposed = layer.is_transposed or "lora_embedding_A" in layer.parts
    bias = layer.parts.get("lora_B.bias")
    return delta.T if is_transposed else delta, largest, None if bias is None else scaling * bias


def _merge_loha(layer: _AdaptedLayer) -> dict[str, MergedTensor]:
    """W + alpha / r (A1 B1) * (A2 B2), the products multiplied by element."""
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    layer.require_parts(*names)
    a1, b1, a2, b2 = (layer.parts[name] for name in names)
    scaling = layer.find_field("alpha", "alpha_pattern") / b1.shape[0]
    delta = scaling * (a1 @ b1) * (a2 @ b2)
    largest = abs(scaling) * float(((a1.abs() @ b1.abs()) * (a2.abs() @ b2.abs())).max())
    return {"weight": _add(layer.weight, delta.reshape(layer.weight.shape), largest)}


def _merge_lokr(layer: _AdaptedLayer) -> dict[str, MergedTensor]:
    """W + alpha / r (W1 kron W2), each of them whole or a product of two."""
    import torch

    factors: list[Tensor] = []
    used_names: set[str] = set()
    for name in ("lokr_w1", "lokr_w2"):
        names = (name,) if name in layer.parts else (f"{name}_a", f"{name}_b")
        used_names |= {*names}
        if not used_names <= layer.parts.keys():
            break
        parts = [layer.parts[part] for part in names]
        factors.append(parts[0] if len(parts) == 1 else parts[0] @ parts[1])
    layer.require_parts(*used_names)
    scaling = layer.find_field("alpha", "alpha_pattern") / layer.find_field("r", "rank_pattern")
    first, second = factors
    first = first.reshape(*first.shape, *[1] * (second.dim() - first.dim()))
    delta = scaling * torch.kron(first, second).reshape(layer.weight.shape)
    return {"weight": _add(layer.weight, delta, float(delta.abs().max()))}


def _merge_ia3(layer: _AdaptedLayer) -> dict[str, MergedTensor]:
    """W * l: by output, the bias too, or by input in what the configuration calls feedforward."""
    layer.require_parts("ia3_l")
    vector = layer.parts["ia3_l"]
    if layer.weight.dim() != 2 or vector.dim() != 2:
        raise PlanError(f"`{layer.path}` is not a linear layer")
    factors = vector.T if layer.is_transposed else vector
    value = layer.weight * factors
    merged = {"weight": MergedTensor(value, float(value.abs().max()))}
    if layer.bias is not None and vector.shape[1] == 1:
        bias = layer.bias * vector.reshape(-1)
        merged["bias"] = MergedTensor(bias, float(bias.abs().max()))
    return merged


def _add(tensor: "Tensor", delta: "Tensor", largest: float) -> MergedTensor:
    value = tensor + delta
    scale = max(largest, float(value.abs().max()), float(tensor.abs().max()))
    return MergedTensor(value, scale)


MERGE_RULES: Final[Mapping[str, Callable[[_AdaptedLayer], dict[str, MergedTensor]]]] = {
    "LORA": _merge_lora,
    "LOHA": _merge_loha,
    "LOKR": _merge_lokr,
    "IA3": _merge_ia3,
    "LN_TUNING": lambda _: {},
}
"""Kind of adapter -> its arithmetic; another kind is not merged, since nothing would check it."""

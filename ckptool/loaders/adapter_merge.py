"""LoRA adapter x base -> merged model, by peft; held to arithmetic of our own in float64."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.errors import PlanError
from ckptool.loaders import peft_adapters
from ckptool.loaders.model_folder import ModelFolder, read_config
from ckptool.loaders.offline import run_offline
from ckptool.loaders.registry import get_loader

if TYPE_CHECKING:
    from torch import Tensor, nn

ROUNDINGS: Final = 8
"""How far a merged weight may be from the arithmetic in float64: this many times the dtype's
epsilon, times the largest number of the weight and of what is added to it."""
_PREFIX: Final = "base_model.model."
_UNSUPPORTED_FIELDS: Final = ("use_dora", "lora_bias", "megatron_config", "layer_replication")


@dataclass(frozen=True, slots=True, eq=False)
class AdapterMerge:
    """A base with an adapter merged into it."""

    module: "nn.Module"
    merged_keys: tuple[str, ...]
    """Keys of the base whose weight has the adapter's product added."""
    replaced_keys: tuple[str, ...]
    """Keys that the adapter has whole (modules_to_save)."""
    largest_difference: float
    """Largest absolute difference between peft's result and the arithmetic in float64."""
    tolerance: float
    """Largest difference that was allowed."""


def merge_adapter(
    base: ModelFolder,
    base_state: Mapping[str, "Tensor"],
    adapter: ModelFolder,
    adapter_state: Mapping[str, "Tensor"],
) -> AdapterMerge:
    """Load base and adapter as their frameworks do, merge by peft, and compare with arithmetic.

    Raises:
        PlanError: the adapter is no plain LoRA, does not fit, or the results differ.
        ModuleError: a configuration is refused.
    """
    fields = read_config(adapter.path / peft_adapters.CONFIG_NAME)
    _require_plain_lora(adapter.path, fields)
    base_loader = get_loader(base.loader)
    base_model, base_info = base_loader.load_state(
        base_loader.build_model(base.path, base.class_name), base_state
    )
    _require_whole(base.path, base_info)
    original = {key: tensor.detach().clone() for key, tensor in base_model.state_dict().items()}
    with run_offline():
        adapted = peft_adapters.add_adapter(base_model, adapter.path)
    loaded, info = peft_adapters.load_state(adapted, adapter_state)
    _require_whole(adapter.path, info)
    with run_offline():
        merged: nn.Module = loaded.merge_and_unload()  # type: ignore[operator]
    return _compare(merged, original, adapter_state, fields, adapter.path)


def _compare(
    merged: "nn.Module",
    original: Mapping[str, "Tensor"],
    adapter_state: Mapping[str, "Tensor"],
    fields: Mapping[str, Any],
    path: Path,
) -> AdapterMerge:
    import torch

    deltas = _compute_deltas(adapter_state, fields)
    replaced = {
        key.removeprefix(_PREFIX): tensor
        for key, tensor in adapter_state.items()
        if ".lora_" not in key
    }
    largest, allowed = 0.0, 0.0
    state = merged.state_dict()
    tied_keys = _find_tied_keys(merged, {*deltas, *replaced})
    for key, tensor in state.items():
        if key in deltas:
            expected = original[key].double() + deltas[key]
            scale = float(torch.maximum(expected.abs().max(), original[key].abs().max().double()))
            tolerance = ROUNDINGS * torch.finfo(tensor.dtype).eps * scale
            difference = float((tensor.double() - expected).abs().max())
            largest, allowed = max(largest, difference), max(allowed, tolerance)
            is_right = difference <= tolerance
        elif key in tied_keys:
            continue
        else:
            is_right = torch.equal(tensor, replaced.get(key, original[key]).to(tensor.dtype))
        if not is_right:
            raise PlanError(f"{path}: not merged: `{key}` is not what the formula gives")
    return AdapterMerge(merged, tuple(deltas), tuple(replaced), largest, allowed)


def _compute_deltas(
    adapter_state: Mapping[str, "Tensor"], fields: Mapping[str, Any]
) -> dict[str, "Tensor"]:
    """Return key of the base -> alpha / r * B @ A in float64; over sqrt(r) for rank-stabilized."""
    deltas: dict[str, Tensor] = {}
    for key, low in adapter_state.items():
        path, _, name = key.removeprefix(_PREFIX).rpartition(".lora_")
        is_embedding = name == "embedding_A"
        if name not in {"A.weight", "embedding_A"}:
            continue
        high = adapter_state[key.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")]
        alpha = _find_pattern(fields.get("alpha_pattern"), path) or fields.get("lora_alpha", 8)
        rank = low.shape[0]
        scaling = alpha / (sqrt(rank) if fields.get("use_rslora") else rank)
        delta = scaling * (high.double() @ low.double())
        is_transposed = is_embedding or bool(fields.get("fan_in_fan_out"))
        deltas[f"{path}.weight"] = delta.T if is_transposed else delta
    return deltas


def _find_pattern(patterns: object, path: str) -> float | None:
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if re.match(rf"(.*\.)?({pattern})$", path) and isinstance(value, int | float):
            return value
    return None


def _find_tied_keys(module: "nn.Module", changed_keys: set[str]) -> set[str]:
    """Return the keys that are one parameter with a changed one under another name."""
    tensors = module.state_dict(keep_vars=True)
    changed_ids = {id(tensors[key]) for key in changed_keys if key in tensors}
    return {k for k, tensor in tensors.items() if id(tensor) in changed_ids} - changed_keys


def _require_plain_lora(path: Path, fields: Mapping[str, Any]) -> None:
    unsupported = [name for name in _UNSUPPORTED_FIELDS if fields.get(name)]
    bias = fields.get("bias") or "none"
    if fields.get("peft_type") != "LORA" or unsupported or bias != "none":
        what = ", ".join(unsupported) or f"peft_type {fields.get('peft_type')!r}, bias {bias!r}"
        raise PlanError(
            f"{path}: not merged: only plain LoRA is supported, but this adapter has {what}"
        )


def _require_whole(path: Path, info: LoadingInfo) -> None:
    if not info.is_whole:
        raise PlanError(f"{path}: not merged: it does not load completely: see ckptool diff {path}")

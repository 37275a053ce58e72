"""Adapter x base -> merged model, by peft; held to arithmetic of our own in float64."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.errors import CkptoolError, PlanError
from ckptool.loaders import peft_adapters
from ckptool.loaders.adapter_arithmetic import ADAPTER_NAME, KEY_PREFIX, MERGE_RULES, merge_tensors
from ckptool.loaders.config_checks import read_model_config
from ckptool.loaders.model_folder import ADAPTER_CONFIG, ModelFolder
from ckptool.loaders.offline import run_offline
from ckptool.loaders.registry import get_loader
from ckptool.locations import Location
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.phrases import cut_middle, join_limited

if TYPE_CHECKING:
    from torch import Tensor, nn

ROUNDINGS: Final = 8
"""How far a merged number may be from the arithmetic in float64: this many times the dtype's
epsilon, times the largest number that the arithmetic meets for the tensor."""
_CHECKED_VARIANTS: Final = frozenset({"use_dora"})
_KEPT_BASE_INITS: Final = frozenset({"gaussian", "orthogonal"})
"""Ways to initialize LoRA that leave the base's weights as they are, besides true and false."""
_UNSUPPORTED_FIELDS: Final = (
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_effective_conv2d",
)
"""Fields by which an adapter changes more than the weights of layers, or by other arithmetic."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterMerge:
    """A base with an adapter merged into it."""

    module: "nn.Module"
    merged_keys: tuple[str, ...]
    """Keys of the base whose tensor is computed from the base's and the adapter's."""
    replaced_keys: tuple[str, ...]
    """Keys that the adapter has whole (modules_to_save, biases)."""
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
        PlanError: the adapter is of another kind, does not fit, or the results differ.
        ModuleError: a configuration is refused.
    """
    config_fields = read_model_config(adapter.path, ADAPTER_CONFIG)
    _require_checkable(adapter.path, config_fields)
    try:
        with user_code():
            return _merge(base, base_state, adapter, adapter_state, config_fields)
    except UserCodeError as error:
        if isinstance(error.error, CkptoolError):
            raise error.error from error
        raise PlanError(f"{adapter.path}: not merged: {error}") from error


def _merge(
    base: ModelFolder,
    base_state: Mapping[str, "Tensor"],
    adapter: ModelFolder,
    adapter_state: Mapping[str, "Tensor"],
    config_fields: Mapping[str, Any],
) -> AdapterMerge:
    base_loader = get_loader(base.loader)
    base_model, base_info = base_loader.load_state(
        base_loader.build_model(base.path, base.class_name), base_state
    )
    _require_whole(base.path, base_info)
    original = {key: tensor.detach().clone() for key, tensor in base_model.state_dict().items()}
    with run_offline():
        transposed_paths = {
            path for path, m in base_model.named_modules() if type(m).__name__ == "Conv1D"
        }
        adapted = peft_adapters.add_adapter(base_model, adapter.path)
    loaded, info = peft_adapters.load_state(adapted, adapter_state)
    _require_whole(adapter.path, info)
    with run_offline():
        merged: nn.Module = loaded.merge_and_unload()  # type: ignore[operator]
    return _compare_with_arithmetic(
        merged, original, transposed_paths, adapter_state, config_fields, adapter.path
    )


def _compare_with_arithmetic(
    merged: "nn.Module",
    original: Mapping[str, "Tensor"],
    transposed_paths: set[str],
    adapter_state: Mapping[str, "Tensor"],
    config_fields: Mapping[str, Any],
    path: Location,
) -> AdapterMerge:
    """Compare each tensor of the merged model with the arithmetic, the adapter's or the base's.

    Raises:
        PlanError: one of them differs.
    """
    import torch

    try:
        expected_tensors = merge_tensors(
            str(config_fields["peft_type"]),
            config_fields,
            adapter_state,
            original,
            lambda layer: layer in transposed_paths or bool(config_fields.get("fan_in_fan_out")),
        )
    except PlanError as error:
        raise PlanError(f"{path}: not merged, since it cannot be checked: {error}") from error
    replaced = dict(_iter_whole_tensors(adapter_state, original))
    largest, allowed = 0.0, 0.0
    tied_keys = _find_tied_keys(merged, {*expected_tensors, *replaced})
    for key, tensor in merged.state_dict().items():
        expected = expected_tensors.get(key)
        if expected is not None:
            tolerance = ROUNDINGS * torch.finfo(tensor.dtype).eps * expected.scale
            difference = float((tensor.double() - expected.value).abs().max())
            largest, allowed = max(largest, difference), max(allowed, tolerance)
            is_right = difference <= tolerance
        elif key in tied_keys:
            continue
        else:
            is_right = torch.equal(tensor, replaced.get(key, original[key]).to(tensor.dtype))
        if not is_right:
            reason = _explain_difference(merged, key, {*expected_tensors, *replaced})
            raise PlanError(f"{path}: not merged: {reason}")
    return AdapterMerge(merged, tuple(expected_tensors), tuple(replaced), largest, allowed)


def _iter_whole_tensors(
    adapter_state: Mapping[str, "Tensor"], original: Mapping[str, "Tensor"]
) -> "Iterator[tuple[str, Tensor]]":
    """Yield key of the base and tensor of the adapter that takes its place."""
    for file_key, tensor in adapter_state.items():
        key = file_key.removeprefix(KEY_PREFIX)
        for part in ("base_layer.", f"ln_tuning_layers.{ADAPTER_NAME}.", "ln_tuning_layers."):
            key = key if key in original else key.replace(part, "")
        if key in original:
            yield key, tensor


def _explain_difference(module: "nn.Module", key: str, changed_keys: set[str]) -> str:
    """Return why a merged tensor is not what the arithmetic gives, as far as it is known."""
    tensors = module.state_dict(keep_vars=True)
    others = [k for k in sorted(changed_keys - {key}) if tensors.get(k) is tensors[key]]
    if not others:
        return f"`{key}` is not what the formula gives"
    return (
        f"`{key}` and `{others[0]}` are tied in the base, and the adapter changes both: peft writes"
        " both changes into the one tensor. Untie them in the base first, with tie_word_embeddings"
        " false in its config.json and a tensor for each in its file"
    )


def _find_tied_keys(module: "nn.Module", changed_keys: set[str]) -> set[str]:
    """Return the keys that are one parameter with a changed one under another name."""
    tensors = module.state_dict(keep_vars=True)
    changed_ids = {id(tensors[key]) for key in changed_keys if key in tensors}
    return {k for k, tensor in tensors.items() if id(tensor) in changed_ids} - changed_keys


def _require_checkable(path: Location, config_fields: Mapping[str, Any]) -> None:
    """Raise PlanError for an adapter that the arithmetic does not know."""
    peft_type = config_fields.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in MERGE_RULES:
        kinds = join_limited(sorted(MERGE_RULES), 8)
        reason = (
            f"peft_type {cut_middle(repr(peft_type))} has no arithmetic here; these have: {kinds}"
        )
        raise PlanError(f"{path}: not merged, since it cannot be checked: {reason}")
    unsupported = [name for name in _list_unsupported_fields() if config_fields.get(name)]
    initialization = config_fields.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.lower() not in _KEPT_BASE_INITS:
        unsupported.append(f"init_lora_weights {initialization!r}, which changes the base")
    if unsupported:
        names = join_limited(unsupported, 4)
        raise PlanError(f"{path}: not merged, since it cannot be checked: it has {names}")


def _list_unsupported_fields() -> tuple[str, ...]:
    """Return the fields for other arithmetic, with those that this peft calls variants of LoRA."""
    from peft import LoraConfig

    variants = (f.name for f in fields(LoraConfig) if f.metadata.get("is_lora_variant"))
    return (*_UNSUPPORTED_FIELDS, *(name for name in variants if name not in _CHECKED_VARIANTS))


def _require_whole(path: Location, info: LoadingInfo) -> None:
    if not info.is_whole:
        raise PlanError(f"{path}: not merged: it does not load completely: see ckptool diff {path}")

"""PEFT: what load_adapter does with an adapter on its base, asked of it with tensors on meta."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from ckptool.compare.framework.loading_info import LoadingInfo, TensorConversion
from ckptool.errors import ModuleError
from ckptool.loaders.build_limits import count_weight_nbytes, limit_build
from ckptool.loaders.config_checks import REMOTE_CODE_FIELD, read_model_config
from ckptool.loaders.mismatches import drop_mismatches
from ckptool.loaders.model_folder import ADAPTER_CONFIG, find_base_folder
from ckptool.loaders.offline import run_offline
from ckptool.locations import Location
from ckptool.phrases import cut_middle

if TYPE_CHECKING:
    from torch import nn

PACKAGES: Final = ("peft", "transformers", "accelerate")
LOADER_CALL: Final = "load_adapter()"
_BASE_NOTE: Final = "only the configuration of the base is used: its weights are not loaded"
_WEIGHT_STD: Final = 0.02
"""Standard deviation of the weights that stand in for the base's."""
_TASK_CLASSES: Final = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""Task of an adapter -> the class that AutoPeftModel takes for its base."""
_TASK_COUNT_FIELDS: Final = ("num_tasks", "n_tasks")
_SHOWN_FIELDS: Final = (
    "r",
    "lora_alpha",
    "target_modules",
    "modules_to_save",
    "num_virtual_tokens",
)


def build_model(folder: Location, class_name: str) -> "nn.Module":  # noqa: ARG001
    """Build the base that adapter_config.json names, with the adapter's modules in it.

    Raises:
        ModuleError: the base is no folder here, or the adapter fits no module of it.
    """
    fields = read_model_config(folder, ADAPTER_CONFIG)
    base_name = fields.get("base_model_name_or_path")
    base = Path(base_name) if isinstance(base_name, str) and base_name else None
    if base is None or not (base / "config.json").is_file():
        raise ModuleError(
            str(folder),
            f"its base, {cut_middle(repr(base_name))} in {ADAPTER_CONFIG}, is not a local folder:"
            " give it with --base FOLDER, or write it there",
        )
    return build_adapter_model(folder, base)


def build_adapter_model(folder: Location, base: Path) -> "nn.Module":
    """Build the model of the folder `base` with the modules of the adapter in `folder`.

    Raises:
        ModuleError: a configuration is refused, or the adapter fits no module of the base.
    """
    from ckptool.loaders.registry import get_loader

    base_folder = find_base_folder(base)
    if base_folder is None:
        raise ModuleError(str(base), "is not a model folder for an adapter")
    class_name = base_folder.class_name
    if base_folder.loader == "transformers":
        class_name = _choose_base_class(folder, base) or class_name
    base_model = get_loader(base_folder.loader).build_model(base, class_name)
    _fill_weights(base_model)
    with run_offline():
        return add_adapter(base_model, folder)


def _fill_weights(base_model: "nn.Module") -> None:
    """Give the base weights that are the same whatever the seed, as those in its file would be.

    What an adapter computes from them (`trainable_tokens_original`) is then the same on every
    construction, and only what the adapter itself draws is random.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    for tensor in base_model.state_dict().values():
        is_drawn = tensor.is_floating_point() and not tensor.is_meta and tensor.numel() > 1
        if is_drawn and tensor.min() != tensor.max():
            tensor.normal_(0, _WEIGHT_STD, generator=generator)


def _choose_base_class(folder: Location, base: Path) -> str:
    """Return the class that the adapter is for instead of the one that the base names.

    AutoPeftModelForSequenceClassification, and the others of its kind, choose by `task_type`,
    AutoPeftModel by `auto_mapping`, the class that was trained. "" if the adapter has neither, or
    transformers no such class for the base's model type.
    """
    fields = read_model_config(folder, ADAPTER_CONFIG)
    task_type = fields.get("task_type")
    auto_name = _TASK_CLASSES.get(task_type, "") if isinstance(task_type, str) else ""
    base_fields = read_model_config(base, "config.json", REMOTE_CODE_FIELD)
    model_type = base_fields.get("model_type")
    if not isinstance(model_type, str):
        return ""
    if not auto_name:
        return "" if task_type else _find_trained_class(fields, model_type)
    with run_offline():
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        if model_type not in CONFIG_MAPPING:
            return ""
        classes = getattr(transformers, auto_name)._model_mapping  # noqa: SLF001
        cls = classes.get(CONFIG_MAPPING[model_type], None)
    cls = cls[0] if isinstance(cls, tuple) else cls
    return "" if cls is None else str(cls.__name__)


def _find_trained_class(fields: Mapping[str, Any], model_type: str) -> str:
    """Return the class of transformers that `auto_mapping` names, if it has this model type."""
    auto_mapping = fields.get("auto_mapping")
    name = auto_mapping.get("base_model_class") if isinstance(auto_mapping, dict) else None
    if not isinstance(name, str) or not name.isidentifier():
        return ""
    with run_offline():
        import transformers

        cls = getattr(transformers, name, None)
        is_model = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    config_class = getattr(cls, "config_class", None) if is_model else None
    return name if getattr(config_class, "model_type", "") == model_type else ""


def add_adapter(base_model: "nn.Module", folder: Location) -> "nn.Module":
    """Return the PeftModel of a base with the adapter's modules, with initial values.

    Raises:
        ModuleError: the configuration is refused, or is none of this peft.
    """
    from peft import PeftModel
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = read_model_config(folder, ADAPTER_CONFIG)
    peft_type = fields.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ModuleError(
            str(folder), f"{ADAPTER_CONFIG}: peft has no peft_type {cut_middle(repr(peft_type))}"
        )
    with TemporaryDirectory(prefix="ckptool-") as copy:
        (Path(copy) / ADAPTER_CONFIG).write_text(json.dumps(fields))
        config = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type].from_pretrained(copy)
    config.inference_mode = True
    cls = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    with limit_build(folder, count_weight_nbytes(folder)):
        model: nn.Module = cls(base_model, config, "default")
    return model


def accepts_module(module: "nn.Module") -> bool:
    """Whether `module` is a PeftModel."""
    with run_offline():
        from peft import PeftModel

    return isinstance(module, PeftModel)


def load_state(module: "nn.Module", state: Mapping[str, Any]) -> "tuple[nn.Module, LoadingInfo]":
    """Load an adapter's state by load_adapter into a copy of `module`."""
    import copy

    from ckptool.loaders.tensor_trace import TensorTrace
    from ckptool.modules.walk import walk_module

    is_on_meta = all(tensor.is_meta for tensor in state.values())
    with run_offline():
        loaded: Any = _copy_on_meta(module) if is_on_meta else copy.deepcopy(module)
        trace = TensorTrace(state, 0)
        with trace, _replace_reader(state), drop_mismatches(loaded) as mismatched_shapes:
            adapter_name = next(iter(loaded.peft_config))
            result = loaded.load_adapter("", adapter_name)
    tensors = loaded.state_dict(keep_vars=True)
    conversions = trace.list_conversions(tensors, lambda key: _strip_adapter(key, adapter_name))
    restored = {
        found_tensor.path: conversion
        for found_tensor in walk_module(loaded).tensors
        if found_tensor.path not in tensors
        and (conversion := trace.find_conversion(found_tensor.path, found_tensor.value)) is not None
    }
    conversions += restored.values()
    overwritten_keys = trace.list_overwritten(conversions)
    taken_state = {k: tensor for k, tensor in state.items() if k not in overwritten_keys}
    info = _build_info(loaded, taken_state, result, conversions, mismatched_shapes)
    restored_paths = tuple(restored)
    return loaded, replace(info, restored_paths=restored_paths, overwritten_keys=overwritten_keys)


def _copy_on_meta(module: "nn.Module") -> "nn.Module":
    """Return a copy with parameters and saved buffers on meta, what is shared still shared."""
    from ckptool.modules.move_probe import copy_to_meta
    from ckptool.modules.walk import walk_module

    copy = copy_to_meta(module, walk_module(module))
    saved_names = copy.state_dict().keys()
    copies: dict[int, Any] = {}
    for name, buffer in [*copy.named_buffers(remove_duplicate=False)]:
        if name in saved_names and not buffer.is_meta:
            prefix, _, attribute = name.rpartition(".")
            meta_buffer = copies.setdefault(id(buffer), buffer.to("meta"))
            copy.get_submodule(prefix)._buffers[attribute] = meta_buffer  # noqa: SLF001
    return copy


def make_inputs(module: "nn.Module") -> Mapping[str, Any]:
    """Return the inputs of the base; also the task's number for adapters of several tasks."""
    import torch

    from ckptool.loaders.transformers_inputs import make_model_inputs

    inputs = make_model_inputs(module.get_base_model())  # type: ignore[operator]
    configs: Any = module.peft_config
    has_tasks = any(
        getattr(config, name, None) for config in configs.values() for name in _TASK_COUNT_FIELDS
    )
    return {**inputs, "task_ids": torch.zeros(1, dtype=torch.int64)} if has_tasks else inputs


def _build_info(
    loaded: Any,
    state: Mapping[str, Any],
    result: Any,
    conversions: list[TensorConversion],
    mismatched_shapes: Mapping[str, tuple[int, ...]],
) -> LoadingInfo:
    """Return what peft's loader did, in the words of all loaders."""
    adapter_name = next(iter(loaded.peft_config))
    used_keys = {key for conversion in conversions for key in conversion.file_keys}
    # What a prompt encoder takes is unexpected to load_state_dict, which does not know it.
    unexpected_keys = tuple(sorted({*result.unexpected_keys} - used_keys))
    file_names = dict(_iter_file_names(unexpected_keys, state, adapter_name))
    dropped_keys = {*file_names.values(), *unexpected_keys}
    # A tensor that layers share (a vector bank) is reported missing under all names but the file's.
    filled_keys = {*mismatched_shapes, *(conversion.key for conversion in conversions)}
    missing_keys = tuple(sorted({*result.missing_keys} - filled_keys))
    return LoadingInfo(
        loader=LOADER_CALL,
        missing_keys=missing_keys,
        unexpected_keys=unexpected_keys,
        conversions=tuple(conversion for conversion in conversions if conversion.operation),
        mismatched_shapes=mismatched_shapes,
        ignored_keys=tuple(
            k for k in state if not mismatched_shapes and k not in used_keys | dropped_keys
        ),
        file_names=file_names,
        scope_keys=(
            *(conversion.key for conversion in conversions),
            *missing_keys,
            *mismatched_shapes,
        ),
        missing_names=tuple(_strip_adapter(key, adapter_name) for key in missing_keys),
        notes=(*_iter_notes(loaded, adapter_name), _BASE_NOTE),
    )


def _iter_file_names(
    unexpected_keys: tuple[str, ...], state: Mapping[str, Any], adapter_name: str
) -> Iterator[tuple[str, str]]:
    for key in unexpected_keys:
        file_key = _strip_adapter(key, adapter_name)
        if key not in state and file_key in state:
            yield key, file_key


def _strip_adapter(key: str, adapter_name: str) -> str:
    """Return the key without the adapter's name, which files leave out."""
    name = key.replace(f"modules_to_save.{adapter_name}.", "")
    return name.replace(f".{adapter_name}.", ".").removesuffix(f".{adapter_name}")


def _iter_notes(loaded: Any, adapter_name: str) -> Iterator[str]:
    config = loaded.peft_config[adapter_name]
    yield _describe_adapter(config)
    base_model = loaded.get_base_model()
    base_class = type(base_model).__name__
    if config.task_type in _TASK_CLASSES:
        yield f"the base is built as {base_class}, for task_type {config.task_type}"
    elif base_class not in (getattr(base_model.config, "architectures", None) or [base_class]):
        yield f"the base is built as {base_class}, for auto_mapping"


def _describe_adapter(config: Any) -> str:
    facts = [
        f"{name} {_format_value(value)}"
        for name in _SHOWN_FIELDS
        if (value := getattr(config, name, None))
    ]
    return (
        f"adapter {config.peft_type.value}: {', '.join(facts)}"
        if facts
        else (f"adapter {config.peft_type.value}")
    )


def _format_value(value: object) -> str:
    return "+".join(sorted(map(str, value))) if isinstance(value, set | list) else str(value)


@contextmanager
def _replace_reader(state: Mapping[str, Any]) -> Iterator[None]:
    """Have load_adapter take `state` where it would read the adapter's file."""
    from peft import peft_model

    load_weights = peft_model.load_peft_weights
    peft_model.load_peft_weights = lambda *_, **__: dict(state)
    try:
        yield
    finally:
        peft_model.load_peft_weights = load_weights

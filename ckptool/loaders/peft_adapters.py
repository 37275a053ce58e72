"""PEFT: what load_adapter does with an adapter on its base, asked of it with tensors on meta."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from ckptool.compare.framework.loading_info import LoadingInfo, TensorConversion
from ckptool.errors import ModuleError
from ckptool.loaders.model_folder import (
    describe_refused_fields,
    find_model_folder,
    find_refused_fields,
    read_config,
)
from ckptool.loaders.offline import run_offline

if TYPE_CHECKING:
    from torch import nn

PACKAGES: Final = ("peft", "transformers", "accelerate")
LOADER_CALL: Final = "load_adapter()"
CONFIG_NAME: Final = "adapter_config.json"
_BASE_NOTE: Final = "only the configuration of the base is used: its weights are not loaded"
_SHOWN_FIELDS: Final = (
    "r",
    "lora_alpha",
    "target_modules",
    "modules_to_save",
    "num_virtual_tokens",
)


def build_model(folder: str | Path, class_name: str) -> "nn.Module":  # noqa: ARG001
    """Build the base that adapter_config.json names, with the adapter's modules in it.

    Raises:
        ModuleError: the base is no folder here, or the adapter fits no module of it.
    """
    fields = read_config(Path(folder) / CONFIG_NAME)
    base_name = fields.get("base_model_name_or_path")
    base = Path(base_name) if isinstance(base_name, str) and base_name else None
    if base is None or not (base / "config.json").is_file():
        raise ModuleError(
            str(folder),
            f"its base, {base_name!r} in {CONFIG_NAME}, is not a local folder: give it with "
            "--base FOLDER",
        )
    return build_adapter_model(folder, base)


def build_adapter_model(folder: str | Path, base: str | Path) -> "nn.Module":
    """Build the model of the folder `base` with the modules of the adapter in `folder`.

    Raises:
        ModuleError: a configuration is refused, or the adapter fits no module of the base.
    """
    from ckptool.loaders.registry import get_loader

    base_folder = find_model_folder(Path(base))
    if base_folder is None or base_folder.loader == "peft":
        raise ModuleError(str(base), "is not a model folder for an adapter")
    base_model = get_loader(base_folder.loader).build_model(base, base_folder.class_name)
    with run_offline():
        return add_adapter(base_model, folder)


def add_adapter(base_model: "nn.Module", folder: str | Path) -> "nn.Module":
    """Return the PeftModel of a base with the adapter's modules, with initial values.

    Raises:
        ModuleError: the configuration is refused, or is none of this peft.
    """
    from peft import PeftModel
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = read_config(Path(folder) / CONFIG_NAME)
    refused = find_refused_fields({k: v for k, v in fields.items() if k != "auto_mapping"})
    if refused:
        raise ModuleError(str(folder), describe_refused_fields(CONFIG_NAME, refused))
    peft_type = fields.get("peft_type")
    if peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ModuleError(str(folder), f"{CONFIG_NAME}: peft has no peft_type {peft_type!r}")
    with TemporaryDirectory(prefix="ckptool-") as copy:
        (Path(copy) / CONFIG_NAME).write_text(json.dumps(fields))
        config = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type].from_pretrained(copy)
    config.inference_mode = True
    cls = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
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

    is_on_meta = all(tensor.is_meta for tensor in state.values())
    with run_offline():
        loaded: Any = _copy_on_meta(module) if is_on_meta else copy.deepcopy(module)
        trace = TensorTrace(state, 0)
        with trace, _reading(state):
            adapter_name = next(iter(loaded.peft_config))
            result = loaded.load_adapter("", adapter_name, ignore_mismatched_sizes=True)
    tensors = loaded.state_dict(keep_vars=True)
    conversions = [
        conversion
        for key in tensors
        if (conversion := trace.find_conversion(key, tensors[key])) is not None
    ]
    return loaded, _build_info(loaded, state, result, conversions)


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
    """Return the inputs of the base."""
    from ckptool.loaders.transformers_inputs import make_model_inputs

    return make_model_inputs(module.get_base_model())  # type: ignore[operator]


def _build_info(
    loaded: Any, state: Mapping[str, Any], result: Any, conversions: list[TensorConversion]
) -> LoadingInfo:
    adapter_name = next(iter(loaded.peft_config))
    used_keys = {key for conversion in conversions for key in conversion.file_keys}
    # What a prompt encoder takes is unexpected to load_state_dict, which does not know it.
    unexpected_keys = tuple(sorted({*result.unexpected_keys} - used_keys))
    file_names = dict(_iter_file_names(unexpected_keys, state, adapter_name))
    dropped_keys = {*file_names.values(), *unexpected_keys}
    mismatched_shapes = dict(_iter_mismatches(loaded, state, {*used_keys, *dropped_keys}))
    missing_keys = tuple(sorted({*result.missing_keys} - mismatched_shapes.keys()))
    return LoadingInfo(
        loader=LOADER_CALL,
        missing_keys=missing_keys,
        unexpected_keys=unexpected_keys,
        conversions=tuple(
            conversion
            for conversion in conversions
            if _strip_adapter(conversion.key, adapter_name) != conversion.file_keys[0]
        ),
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
        notes=(_describe_adapter(loaded.peft_config[adapter_name]), _BASE_NOTE),
    )


def _iter_file_names(
    unexpected_keys: tuple[str, ...], state: Mapping[str, Any], adapter_name: str
) -> Iterator[tuple[str, str]]:
    for key in unexpected_keys:
        file_key = _strip_adapter(key, adapter_name)
        if key not in state and file_key in state:
            yield key, file_key


def _iter_mismatches(
    loaded: Any, state: Mapping[str, Any], known_keys: set[str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the module's keys, and the shape in the file, of tensors with another shape."""
    adapter_name = next(iter(loaded.peft_config))
    names = {
        _strip_adapter(key, adapter_name): key
        for key, tensor in loaded.state_dict(keep_vars=True).items()
        if f".{adapter_name}" in key
    }
    for file_key in state.keys() - known_keys:
        if file_key in names:
            yield names[file_key], tuple(state[file_key].shape)


def _strip_adapter(key: str, adapter_name: str) -> str:
    """Return the key without the adapter's name, which files leave out."""
    name = key.replace(f"modules_to_save.{adapter_name}.", "")
    return name.replace(f".{adapter_name}.", ".").removesuffix(f".{adapter_name}")


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
def _reading(state: Mapping[str, Any]) -> Iterator[None]:
    """Have load_adapter take `state` where it would read the adapter's file."""
    from peft import peft_model

    load_weights = peft_model.load_peft_weights
    peft_model.load_peft_weights = lambda *_, **__: dict(state)
    try:
        yield
    finally:
        peft_model.load_peft_weights = load_weights

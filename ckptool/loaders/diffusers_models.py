"""diffusers: what from_pretrained does with a model's state, asked of it with tensors on meta."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.formats.files.source import path_exists
from ckptool.loaders.build_limits import build_within_limits
from ckptool.loaders.config_checks import find_model_class, read_model_config
from ckptool.loaders.model_folder import PIPELINE_CONFIG
from ckptool.loaders.offline import run_offline
from ckptool.locations import Location

if TYPE_CHECKING:
    from torch import nn

PACKAGES: Final = ("diffusers", "accelerate")
LOADER_CALL: Final = "from_pretrained()"
_CONFIG_NAME: Final = "config.json"
_IMAGE_MODELS: Final = frozenset({"UNet2DModel", "UNet2DConditionModel", "AutoencoderKL"})
_CONDITION_FIELDS: Final = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)
"""Fields by which forward takes more than an image, a timestep and encoded text."""
_STUB_NAME: Final = "diffusion_pytorch_model.safetensors"
_EMPTY_SAFETENSORS: Final = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"


def build_model(folder: Location, class_name: str) -> "nn.Module":
    """Build the class that config.json names, or the models that model_index.json names.

    Raises:
        ModuleError: the configuration is refused, or names no model.
    """
    if path_exists(folder / PIPELINE_CONFIG):
        from ckptool.loaders.diffusers_pipelines import build_pipeline

        return build_pipeline(folder)
    with run_offline():
        import diffusers

        cls = find_model_class(
            diffusers, diffusers.ModelMixin, class_name, str(folder), _CONFIG_NAME
        )
    return build_class(folder, cls)


def build_class(folder: Location, cls: Any) -> "nn.Module":
    """Build a ModelMixin as the configuration in its folder says.

    Raises:
        ModuleError: the configuration is refused.
    """
    fields = read_model_config(folder, _CONFIG_NAME)
    with run_offline(), TemporaryDirectory(prefix="ckptool-") as copy:
        (Path(copy) / _CONFIG_NAME).write_text(json.dumps(fields))
        config = cls.load_config(copy, local_files_only=True)
    return build_within_limits(lambda: cls.from_config(config), folder)


def accepts_module(module: "nn.Module") -> bool:
    """Whether `module` is a ModelMixin or a pipeline, which from_pretrained loads."""
    with run_offline():
        from diffusers import ModelMixin

    return isinstance(module, ModelMixin) or is_pipeline(module)


def is_pipeline(module: "nn.Module") -> bool:
    """Whether `module` has the models of a pipeline; nothing is imported for it."""
    return type(module).__module__ == "ckptool.loaders.diffusers_pipelines"


def load_state(module: "nn.Module", state: Mapping[str, Any]) -> "tuple[nn.Module, LoadingInfo]":
    """Load a state by from_pretrained into a new instance of the module's class."""
    if is_pipeline(module):
        from ckptool.loaders.diffusers_pipelines import load_pipeline

        return load_pipeline(module, state)  # type: ignore[arg-type]
    from ckptool.loaders.tensor_trace import TensorTrace

    is_on_meta = all(tensor.is_meta for tensor in state.values())
    trace = TensorTrace(state, 0)
    model: Any = module
    with run_offline(), TemporaryDirectory(prefix="ckptool-") as folder:
        model.save_config(folder)
        (Path(folder) / _STUB_NAME).write_bytes(_EMPTY_SAFETENSORS)
        with _replace_reader(state), trace:
            loaded, info = type(model).from_pretrained(
                folder,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                device_map={"": "meta"} if is_on_meta else None,
            )
    conversions = trace.list_conversions(loaded.state_dict(keep_vars=True))
    used_keys = {key for conversion in conversions for key in conversion.file_keys}
    mismatched_shapes = {key: tuple(shape) for key, shape, _ in info["mismatched_keys"]}
    overwritten_keys = trace.list_overwritten(conversions)
    known_keys = {*used_keys, *info["unexpected_keys"], *mismatched_shapes, *overwritten_keys}
    return loaded, LoadingInfo(
        loader=LOADER_CALL,
        missing_keys=tuple(sorted(info["missing_keys"])),
        unexpected_keys=tuple(sorted(info["unexpected_keys"])),
        mismatched_shapes=mismatched_shapes,
        conversions=tuple(conversion for conversion in conversions if conversion.operation),
        ignored_keys=tuple(key for key in state if is_on_meta and key not in known_keys),
        overwritten_keys=overwritten_keys,
        error="; ".join(info["error_msgs"]),
    )


def make_inputs(module: "nn.Module") -> Mapping[str, Any]:
    """Return the inputs of each model of a pipeline, or a small noisy image of the usual models.

    {} where the configuration does not say all that forward takes.
    """
    if is_pipeline(module):
        from ckptool.loaders.diffusers_pipelines import make_pipeline_inputs

        return make_pipeline_inputs(module)  # type: ignore[arg-type]
    import torch

    config: Any = module.config
    class_name = type(module).__name__
    is_conditioned = any(config.get(field) is not None for field in _CONDITION_FIELDS)
    blocks = config.get("block_out_channels")
    if class_name not in _IMAGE_MODELS or is_conditioned or not blocks:
        return {}
    generator = torch.Generator().manual_seed(0)
    size = max(8, 2 ** len(blocks))
    channels = config["in_channels"]
    inputs: dict[str, Any] = {"sample": torch.rand(1, channels, size, size, generator=generator)}
    if class_name != "AutoencoderKL":
        inputs["timestep"] = torch.ones(1, dtype=torch.int64)
    width = config.get("cross_attention_dim")
    if class_name == "UNet2DConditionModel":
        if not isinstance(width, int):
            return {}
        inputs["encoder_hidden_states"] = torch.rand(1, 8, width, generator=generator)
    return inputs


@contextmanager
def _replace_reader(state: Mapping[str, Any]) -> Iterator[None]:
    """Have from_pretrained take `state` where it would read a file of weights."""
    from diffusers.models import model_loading_utils, modeling_utils

    readers = (modeling_utils, model_loading_utils)
    old_readers = [module.load_state_dict for module in readers]

    def read_state(source: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return source if isinstance(source, dict) else dict(state)

    for module in readers:
        module.load_state_dict = read_state
    try:
        yield
    finally:
        for module, old_reader in zip(readers, old_readers, strict=True):
            module.load_state_dict = old_reader

"""diffusers: what from_pretrained does with a model's state, asked of it with tensors on meta."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.errors import ModuleError
from ckptool.loaders.model_folder import (
    describe_refused_fields,
    find_refused_fields,
    read_config,
)
from ckptool.loaders.offline import run_offline
from ckptool.phrases import join_limited

if TYPE_CHECKING:
    from torch import nn

PACKAGES: Final = ("diffusers", "accelerate")
LOADER_CALL: Final = "from_pretrained()"
_CONFIG_NAME: Final = "config.json"
_STUB_NAME: Final = "diffusion_pytorch_model.safetensors"
_EMPTY_SAFETENSORS: Final = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"


def build_model(folder: str | Path, class_name: str) -> "nn.Module":
    """Build the class that config.json names, with initial values.

    Raises:
        ModuleError: the folder is a pipeline, the configuration is refused, or names no model.
    """
    path = Path(folder)
    if (path / "model_index.json").is_file():
        parts = sorted(item.name for item in path.iterdir() if (item / _CONFIG_NAME).is_file())
        names = join_limited([f"{path / part}" for part in parts], 8)
        raise ModuleError(
            str(path), f"is a pipeline of several models: choose one of them: {names}"
        )
    fields = read_config(path / _CONFIG_NAME)
    refused = find_refused_fields(fields)
    if refused:
        raise ModuleError(str(path), describe_refused_fields(_CONFIG_NAME, refused))
    with run_offline():
        cls = _find_class(class_name, str(path))
        with TemporaryDirectory(prefix="ckptool-") as copy:
            (Path(copy) / _CONFIG_NAME).write_text(json.dumps(fields))
            config = cls.load_config(copy, local_files_only=True)
        module: nn.Module = cls.from_config(config)
    return module


def accepts_module(module: "nn.Module") -> bool:
    """Whether `module` is a ModelMixin, which from_pretrained loads."""
    with run_offline():
        from diffusers import ModelMixin

    return isinstance(module, ModelMixin)


def load_state(module: "nn.Module", state: Mapping[str, Any]) -> "tuple[nn.Module, LoadingInfo]":
    """Load a state by from_pretrained into a new instance of the module's class."""
    from ckptool.loaders.tensor_trace import TensorTrace

    is_on_meta = all(tensor.is_meta for tensor in state.values())
    trace = TensorTrace(state, 0)
    model: Any = module
    with run_offline(), TemporaryDirectory(prefix="ckptool-") as folder:
        model.save_config(folder)
        (Path(folder) / _STUB_NAME).write_bytes(_EMPTY_SAFETENSORS)
        with _reading(state), trace:
            loaded, info = type(model).from_pretrained(
                folder,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                device_map={"": "meta"} if is_on_meta else None,
            )
    conversions = [
        conversion
        for key, tensor in loaded.state_dict(keep_vars=True).items()
        if (conversion := trace.find_conversion(key, tensor)) is not None
    ]
    used_keys = {key for conversion in conversions for key in conversion.file_keys}
    mismatched_shapes = {key: tuple(shape) for key, shape, _ in info["mismatched_keys"]}
    known_keys = {*used_keys, *info["unexpected_keys"], *mismatched_shapes}
    return loaded, LoadingInfo(
        loader=LOADER_CALL,
        missing_keys=tuple(sorted(info["missing_keys"])),
        unexpected_keys=tuple(sorted(info["unexpected_keys"])),
        mismatched_shapes=mismatched_shapes,
        conversions=tuple(conversion for conversion in conversions if conversion.operation),
        ignored_keys=tuple(key for key in state if is_on_meta and key not in known_keys),
        error="; ".join(info["error_msgs"]),
    )


def make_inputs(module: "nn.Module") -> Mapping[str, Any]:
    """Return no inputs: what forward of a diffusion model takes is not in its configuration."""
    del module
    return {}


def _find_class(class_name: str, folder: str) -> Any:
    """Return the class of diffusers.

    Raises:
        ModuleError: diffusers has no such class of models.
    """
    import diffusers

    cls = getattr(diffusers, class_name, None) if class_name.isidentifier() else None
    is_model = isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)
    if cls is None or not is_model or not cls.__module__.startswith("diffusers."):
        raise ModuleError(
            folder,
            f"{_CONFIG_NAME} names {class_name!r}, but diffusers {diffusers.__version__} has no "
            "such model: give your own class with -m package.module:Name",
        )
    return cls


@contextmanager
def _reading(state: Mapping[str, Any]) -> Iterator[None]:
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

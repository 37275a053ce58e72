"""Folder of a framework -> ModelFolder: its class and weights, from JSON; nothing is imported."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from ckptool.errors import ReadError, UsageError
from ckptool.formats.files.source import is_directory, list_names, open_source
from ckptool.locations import Location, RemotePath
from ckptool.phrases import join_limited, quote_code

LOADER_NAMES: Final = ("torch", "transformers", "diffusers", "peft", "timm")
INSTALL_HINT: Final = "pip install 'ckptool[frameworks]'"
_TIMM_HINT: Final = "pip install timm torchvision"
MAX_CONFIG_NBYTES: Final = 4 << 20
_MAX_DEPTH: Final = 64
_MAX_VALUES: Final = 200_000

CODE_FIELDS: Final = ("auto_map", "custom_pipelines", "custom_generate", "fusion_config")
"""Fields by which a configuration names code of its own, or changes a framework's classes."""
PATH_FIELDS: Final = ("transformers_weights", "configuration_files")
"""Fields by which a configuration names other files."""
_KERNEL_FIELDS: Final = ("attn_implementation", "_attn_implementation", "experts_implementation")
"""Fields whose value may name a kernel on the Hub: "owner/name"."""

_TRANSFORMERS_WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which from_pretrained looks for them."""
_DIFFUSERS_WEIGHTS: Final = (
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
)
_PEFT_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
_TIMM_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")


class ModelFolder(Struct, frozen=True):
    """A folder as a framework saves it: the class that its configuration names, and its weights."""

    path: Path
    loader: str
    """Name of the framework, as in LOADER_NAMES."""
    class_name: str
    """Class or architecture of the framework; "" if the configuration names none."""
    config_name: str
    """Name of the file that says so."""
    weights_name: str = ""
    """Name of the file that the framework reads; "" if none of its names is there."""

    @property
    def install_hint(self) -> str:
        """The command that installs the framework."""
        return get_install_hint(self.loader)

    @property
    def label(self) -> str:
        """Name of the module in reports: "transformers.MixtralForCausalLM"."""
        return (
            f"{self.loader}.{self.class_name}"
            if self.class_name
            else f"{self.loader} {self.path.name}"
        )

    @property
    def evidence(self) -> str:
        """What the configuration says, for people."""
        if not self.class_name:
            return f"{self.config_name} is one of {self.loader}"
        return f"{self.config_name} names {quote_code(self.class_name)} of {self.loader}"


def get_install_hint(loader: str) -> str:
    """Return the command that installs a framework; timm needs torchvision, which is by hand."""
    return _TIMM_HINT if loader == "timm" else INSTALL_HINT


def find_model_folder(location: Location, loader: str | None = None) -> ModelFolder | None:
    """Return the framework's folder at `location`; None if it is none, or is remote.

    Args:
        location: a folder; with `loader`, also a file in it.
        loader: the only framework that is looked for; None takes the first whose configuration is
            there.

    Raises:
        ReadError: the configuration is no JSON, or is too large.
    """
    if isinstance(location, RemotePath) or loader == "torch":
        return None
    folder = location if is_directory(location) else location.parent
    if folder != location and loader is None:
        return None
    names = list_names(folder)
    for identify in (_identify_peft, _identify_diffusers, _identify_timm, _identify_transformers):
        model_folder = identify(folder, names)
        if model_folder is not None and loader in {None, model_folder.loader}:
            return model_folder
    return None


def require_model_folder(location: Location, loader: str) -> ModelFolder:
    """Return the folder of the framework `loader` at `location`.

    Raises:
        ReadError: the configuration is no JSON, or is too large.
        UsageError: there is no configuration of it.
    """
    model_folder = find_model_folder(location, loader)
    if model_folder is None:
        raise UsageError(f"--loader {loader}: {location} has no configuration of {loader}")
    return model_folder


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in a configuration file.

    Infinity and NaN are read, as the frameworks write them.

    Raises:
        ReadError: it is not a JSON object, is too large or nested too deeply.
    """
    with open_source(path) as source:
        if source.nbytes > MAX_CONFIG_NBYTES:
            raise ReadError(path, f"is a configuration of more than {MAX_CONFIG_NBYTES >> 20} MiB")
        head = source.read_head(MAX_CONFIG_NBYTES)
    try:
        config = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise ReadError(path, f"is not a JSON configuration: {error}") from error
    if not isinstance(config, dict):
        raise ReadError(path, "is not a JSON object")
    for count, (_, _, depth) in enumerate(_iter_fields(config)):
        if depth > _MAX_DEPTH or count > _MAX_VALUES:
            raise ReadError(path, "is a configuration with too many values, or nested too deeply")
    return config


def find_refused_fields(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields, at any depth, by which a configuration chooses code or other files."""
    refused = (*CODE_FIELDS, *PATH_FIELDS)
    names = (
        name
        for name, value, _ in _iter_fields(config)
        if (name in refused and value)
        or (name in _KERNEL_FIELDS and isinstance(value, str) and "/" in value)
    )
    return tuple(dict.fromkeys(names))


def describe_refused_fields(config_name: str, fields: Sequence[str]) -> str:
    """Return the sentence that refuses a configuration, and what to do."""
    names = join_limited(fields, 3, quote_code)
    return (
        f"{config_name} has {names}: code or files selected by a checkpoint are never used. Give "
        "your own module with -m package.module:Name"
    )


def _iter_fields(config: object) -> Iterator[tuple[str, object, int]]:
    """Yield name, value and depth of all fields, without recursion."""
    pending: list[tuple[object, int]] = [(config, 0)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, dict):
            for name, item in value.items():
                yield str(name), item, depth
                pending.append((item, depth + 1))
        elif isinstance(value, list):
            pending += [(item, depth + 1) for item in value]


def _choose_weights(names: Sequence[str], preferred_names: Sequence[str]) -> str:
    return next((name for name in preferred_names if name in names), "")


def _identify_peft(folder: Path, names: Sequence[str]) -> ModelFolder | None:
    if "adapter_config.json" not in names:
        return None
    config = read_config(folder / "adapter_config.json")
    class_name = config.get("peft_type")
    return ModelFolder(
        folder,
        "peft",
        class_name if isinstance(class_name, str) else "",
        "adapter_config.json",
        _choose_weights(names, _PEFT_WEIGHTS),
    )


def _identify_diffusers(folder: Path, names: Sequence[str]) -> ModelFolder | None:
    config_name = _choose_weights(names, ("model_index.json", "config.json"))
    if not config_name:
        return None
    class_name = read_config(folder / config_name).get("_class_name")
    if not isinstance(class_name, str):
        return None
    weights_name = _choose_weights(names, _DIFFUSERS_WEIGHTS)
    return ModelFolder(folder, "diffusers", class_name, config_name, weights_name)


def _identify_timm(folder: Path, names: Sequence[str]) -> ModelFolder | None:
    if "config.json" not in names:
        return None
    config = read_config(folder / "config.json")
    class_name = config.get("architecture")
    if not isinstance(class_name, str) or "pretrained_cfg" not in config:
        return None
    return ModelFolder(
        folder, "timm", class_name, "config.json", _choose_weights(names, _TIMM_WEIGHTS)
    )


def _identify_transformers(folder: Path, names: Sequence[str]) -> ModelFolder | None:
    if "config.json" not in names:
        return None
    config = read_config(folder / "config.json")
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    if not first and not isinstance(config.get("model_type"), str):
        return None
    return ModelFolder(
        folder,
        "transformers",
        first if isinstance(first, str) else "",
        "config.json",
        _choose_weights(names, _TRANSFORMERS_WEIGHTS),
    )

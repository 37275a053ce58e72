"""Folder of a framework -> ModelFolder: its class and weights, from JSON; nothing is imported."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import ReadError, UsageError
from ckptool.formats.files.source import is_directory, list_names, open_source
from ckptool.locations import Location, RemotePath
from ckptool.model import Checkpoint, ContainerIssue, IssueKind
from ckptool.phrases import cut_middle, join_limited, quote_code

LOADER_NAMES: Final = ("torch", "transformers", "diffusers", "peft", "timm")
INSTALL_HINT: Final = "pip install 'ckptool[frameworks]'"
_TIMM_HINT: Final = "pip install timm torchvision"
MAX_CONFIG_NBYTES: Final = 4 << 20
_MAX_DEPTH: Final = 64
_MAX_VALUES: Final = 200_000

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
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
)
"""In the order of diffusers, which takes an index first; the last one is never looked for."""
_PEFT_WEIGHTS: Final = ("adapter_model.safetensors", "adapter_model.bin")
_TIMM_WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")

_WEIGHTS_NAMES: Final = {
    "transformers": _TRANSFORMERS_WEIGHTS,
    "diffusers": _DIFFUSERS_WEIGHTS[:3],
    "peft": _PEFT_WEIGHTS,
}
"""Loader -> the only names of weights that its from_pretrained looks for."""

PIPELINE_CONFIG: Final = "model_index.json"
"""Configuration of a pipeline of diffusers, whose models have folders of their own."""


class ModelFolder(Struct, frozen=True):
    """A folder as a framework saves it: the class that its configuration names, and its weights."""

    path: Location
    loader: str
    """Name of the framework, as in LOADER_NAMES."""
    class_name: str
    """Class or architecture of the framework; "" if the configuration names none."""
    config_name: str
    """Name of the file that says so."""
    weights_name: str = ""
    """Name of the file that the framework reads; "" if none of its names is there."""

    @property
    def is_pipeline(self) -> bool:
        """Whether it has no weights of its own, but folders of models."""
        return self.config_name == PIPELINE_CONFIG

    @property
    def frameworks(self) -> tuple[str, ...]:
        """Names of the frameworks that build it: models of a pipeline are of two."""
        return (self.loader, "transformers") if self.is_pipeline else (self.loader,)

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
        name = quote_code(cut_middle(self.class_name))
        return f"{self.config_name} names {name} of {self.loader}"


def get_install_hint(loader: str) -> str:
    """Return the command that installs a framework; timm needs torchvision, which is by hand."""
    return _TIMM_HINT if loader == "timm" else INSTALL_HINT


def find_model_folder(location: Location, loader: str | None = None) -> ModelFolder | None:
    """Return the framework's folder at `location`; None if it is none, or cannot be listed.

    Args:
        location: a folder; with `loader`, also a file in it.
        loader: the only framework that is looked for; None takes the first whose configuration is
            there.

    Raises:
        ReadError: the configuration is no JSON, or is too large.
    """
    if loader == "torch" or (isinstance(location, RemotePath) and location.is_web):
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


def read_config(path: Location) -> dict[str, Any]:
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
    for count, (_, _, depth) in enumerate(iter_fields(config)):
        if depth > _MAX_DEPTH or count > _MAX_VALUES:
            raise ReadError(path, "is a configuration with too many values, or nested too deeply")
    return config


def iter_fields(config: object) -> Iterator[tuple[str, object, int]]:
    """Yield name, value and depth of all fields, and of the items of lists by the list's name."""
    pending: list[tuple[str, object, int]] = [("", config, 0)]
    while pending:
        list_name, value, depth = pending.pop()
        if isinstance(value, dict):
            items = [(str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            items = [(list_name, item) for item in value]
        else:
            continue
        for name, item in items:
            yield name, item, depth
            pending.append((name, item, depth + 1))


def _choose_weights(names: Sequence[str], preferred_names: Sequence[str]) -> str:
    """Return the first of the names that is there, else that of the one variant; "" without."""
    for name in preferred_names:
        if name in names:
            return name
    variants = [match for name in preferred_names for match in _find_variants(name, names)]
    return variants[0][0] if len({variant for _, variant in variants}) == 1 else ""


def _find_variants(name: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the files that are `name` of a variant: "model.fp16.safetensors"; and its name."""
    stem, _, suffix = name.partition(".")
    if suffix.endswith(".index.json"):
        pattern = rf"{stem}\.{re.escape(suffix.removesuffix('.json'))}\.(?P<variant>\w+)\.json"
    else:
        pattern = rf"{stem}\.(?P<variant>\w+)\.{suffix}"
    matches = (re.fullmatch(pattern, candidate) for candidate in names)
    return [(match[0], match["variant"]) for match in matches if match]


def note_unreached_weights(checkpoint: Checkpoint, model_folder: ModelFolder) -> Checkpoint:
    """Return the checkpoint of a folder with the issue that the framework does not load it."""
    reason = _explain_unreached(checkpoint, model_folder)
    if not reason:
        return checkpoint
    issue = ContainerIssue(IssueKind.UNREACHED, reason, {})
    return replace(checkpoint, faults=(*checkpoint.faults, issue))


def _explain_unreached(checkpoint: Checkpoint, model_folder: ModelFolder) -> str:
    """Return why the framework does not find the weights that were read; "" if it does.

    It looks for files of certain names, and takes what `torch.load` returns for the state_dict.
    """
    expected_names = _WEIGHTS_NAMES.get(model_folder.loader)
    if expected_names is None:
        return ""
    if not model_folder.weights_name:
        names = join_limited(expected_names, len(expected_names), quote_code)
        file_name = quote_code(cut_middle(checkpoint.path.name))
        return f"it finds no weights: it looks for {names}, and not for {file_name}"
    places = [state.at for state in checkpoint.states if state.role == "state_dict"]
    if not places or "" in places:
        return ""
    file_name = quote_code(model_folder.weights_name)
    place = quote_code(cut_middle(places[0]))
    return f"it takes the whole of {file_name} for the state_dict, which is at {place}"


def list_components(pipeline: ModelFolder) -> dict[str, ModelFolder]:
    """Return the folders with weights that a pipeline's configuration names, by their names.

    Raises:
        ReadError: the configuration is no JSON, or is too large.
    """
    components: dict[str, ModelFolder] = {}
    for name, value in read_config(pipeline.path / PIPELINE_CONFIG).items():
        is_component = isinstance(value, list) and len(value) == 2 and name.isidentifier()
        if not is_component or name.startswith("_") or not is_directory(pipeline.path / name):
            continue
        names = list_names(pipeline.path / name)
        for loader, preferred in (
            ("diffusers", _DIFFUSERS_WEIGHTS),
            ("transformers", _TRANSFORMERS_WEIGHTS),
        ):
            weights_name = _choose_weights(names, preferred)
            if weights_name:
                folder = pipeline.path / name
                components[name] = ModelFolder(
                    folder, loader, str(value[1]), "config.json", weights_name
                )
                break
    return components


def _identify_peft(folder: Location, names: Sequence[str]) -> ModelFolder | None:
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


def _identify_diffusers(folder: Location, names: Sequence[str]) -> ModelFolder | None:
    config_name = next((n for n in (PIPELINE_CONFIG, "config.json") if n in names), "")
    if not config_name:
        return None
    class_name = read_config(folder / config_name).get("_class_name")
    if not isinstance(class_name, str):
        return None
    weights_name = _choose_weights(names, _DIFFUSERS_WEIGHTS)
    return ModelFolder(folder, "diffusers", class_name, config_name, weights_name)


def _identify_timm(folder: Location, names: Sequence[str]) -> ModelFolder | None:
    if "config.json" not in names:
        return None
    config = read_config(folder / "config.json")
    class_name = config.get("architecture")
    if not isinstance(class_name, str) or "pretrained_cfg" not in config:
        return None
    return ModelFolder(
        folder, "timm", class_name, "config.json", _choose_weights(names, _TIMM_WEIGHTS)
    )


def _identify_transformers(folder: Location, names: Sequence[str]) -> ModelFolder | None:
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

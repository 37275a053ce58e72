"""Folder of a framework -> ModelFolder: its class and weights, from JSON; nothing is imported."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import ReadError, UsageError
from ckptool.formats.files.source import is_directory, list_names, open_source
from ckptool.formats.files.weight_names import (
    LOOKUP_ORDERS,
    choose_weights,
    is_index_name,
    list_file_names,
)
from ckptool.locations import Location, RemotePath
from ckptool.model import Checkpoint, Container, ContainerIssue, IssueKind, Safety, Skipped
from ckptool.phrases import cut_middle, describe_missing_parts, join_limited, quote_code

LOADER_NAMES: Final = ("torch", "transformers", "diffusers", "peft", "timm")
INSTALL_HINT: Final = "pip install 'ckptool[frameworks]'"
_TIMM_HINT: Final = "pip install timm torchvision"
MAX_CONFIG_NBYTES: Final = 4 << 20
_MAX_DEPTH: Final = 64
_MAX_VALUES: Final = 200_000

LOADERS_BY_NAME: Final = frozenset({"transformers", "diffusers", "peft"})
"""Those that look for files of certain names only, and take what is in them for the state_dict."""

_LATER_MODULE: Final = re.compile(r"\d{1,3}_\w{1,80}")
"""Names that sentence-transformers gives the folders of its modules: "2_Dense"."""
_SAFETENSORS_SUFFIX: Final = ".safetensors"

PIPELINE_CONFIG: Final = "model_index.json"
"""Configuration of a pipeline of diffusers, whose models have folders of their own."""
ADAPTER_CONFIG: Final = "adapter_config.json"
"""Configuration of an adapter of peft."""
MODEL_CONFIGS: Final = frozenset({"config.json", ADAPTER_CONFIG, PIPELINE_CONFIG})
"""Names of the files by which a framework's folder is known."""


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
    has_own_classes: bool = False
    """Whether the configuration also names classes in files of the folder."""

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
        own_classes = "; the code that its `auto_map` names is not run" * self.has_own_classes
        return f"{self.config_name} names {name} of {self.loader}{own_classes}"


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
    names = list_file_names(folder)
    for identify in (_identify_peft, _identify_diffusers, _identify_timm, _identify_transformers):
        model_folder = identify(folder, names)
        if model_folder is not None and loader in {None, model_folder.loader}:
            return model_folder
    return None


def find_base_folder(location: Location) -> ModelFolder | None:
    """Return the model at `location` that an adapter may be for; None without.

    An adapter in the same folder is not looked at: training often saves both in one.

    Raises:
        ReadError: the configuration is no JSON, or is too large.
    """
    folders = (find_model_folder(location, name) for name in ("diffusers", "timm", "transformers"))
    return next(filter(None, folders), None)


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


def note_framework_loading(checkpoint: Checkpoint, model_folder: ModelFolder) -> Checkpoint:
    """Return the checkpoint of a folder with what its framework does with it.

    It looks for files of certain names, opens them by their suffix, and takes the whole of what is
    in them for the state_dict: if that fails, the checkpoint has an issue more. It reads whole
    shards, so that a tensor in another shard than the index says is loaded.
    """
    if model_folder.loader not in LOADERS_BY_NAME:
        return checkpoint
    faults = tuple(
        replace(fault, facts={**fault.facts, "loader": "from_pretrained()"})
        if fault.kind is IssueKind.MISPLACED_TENSOR
        else fault
        for fault in checkpoint.faults
    )
    checkpoint = replace(
        checkpoint, skipped=(*checkpoint.skipped, *_list_later_modules(model_folder))
    )
    if reason := _explain_unreached(checkpoint, model_folder):
        issue = ContainerIssue(IssueKind.UNREACHED, reason, {})
    elif reason := _explain_nested(checkpoint, model_folder):
        issue = ContainerIssue(IssueKind.NESTED, reason, {})
    else:
        return replace(checkpoint, faults=faults)
    return replace(checkpoint, faults=(*faults, issue))


def _list_later_modules(model_folder: ModelFolder) -> Iterator[Skipped]:
    """Yield the modules after the first of a folder of sentence-transformers that have weights.

    Its configuration is that of the first module, a model of transformers; the others have folders
    of their own, which `modules.json` names.
    """
    folder = model_folder.path
    if model_folder.loader != "transformers" or not isinstance(folder, Path):
        return
    names = list_names(folder)
    if "modules.json" not in names:
        return
    for name in sorted(filter(_LATER_MODULE.fullmatch, names)):
        if is_directory(folder / name) and choose_weights(
            list_file_names(folder / name), "transformers"
        ):
            reason = "SentenceTransformer loads it after the model of transformers: give its folder"
            yield Skipped(f"module {quote_code(cut_middle(name))}", reason)


def _explain_unreached(checkpoint: Checkpoint, model_folder: ModelFolder) -> str:
    """Return why the framework does not find or open the weights that were read; "" if it does."""
    # A tensor that a shard lacks is a missing key; without a shard the loader raises.
    missing_shards = [f.key for f in checkpoint.faults if f.kind is IssueKind.MISSING_SHARD]
    if missing_shards:
        return f"the folder {describe_missing_parts(missing_shards)}"
    if not model_folder.weights_name:
        expected_names = LOOKUP_ORDERS[model_folder.loader]
        names = join_limited(expected_names, len(expected_names), quote_code)
        file_name = quote_code(cut_middle(checkpoint.path.name))
        return f"it finds no weights: it looks for {names}, and not for {file_name}"
    return _explain_wrong_format(checkpoint, model_folder) or _explain_refused_code(
        checkpoint, model_folder.weights_name
    )


def _explain_wrong_format(checkpoint: Checkpoint, model_folder: ModelFolder) -> str:
    """Return which file is not in the format in which the framework opens it; "" if all are.

    The suffix of each file decides, but transformers opens all of them with safetensors if the
    first one, in the order of their names, is a .safetensors file.
    """
    containers = checkpoint.shard_containers or {model_folder.weights_name: checkpoint.container}
    names = sorted(containers)
    is_first_decisive = model_folder.loader == "transformers"
    opens_safetensors = is_first_decisive and names[0].endswith(_SAFETENSORS_SUFFIX)
    for name in names:
        is_safetensors = containers[name] is Container.SAFETENSORS
        is_opened_so = opens_safetensors or name.endswith(_SAFETENSORS_SUFFIX)
        if is_safetensors != is_opened_so:
            library = "safetensors" if is_opened_so else "torch.load"
            actual = "in another format" if is_opened_so else "in the format of safetensors"
            return (
                f"it opens {quote_code(cut_middle(name))} with {library}, and the file is {actual}"
            )
    return ""


def _explain_refused_code(checkpoint: Checkpoint, weights_name: str) -> str:
    """Return what torch.load(weights_only=True) refuses in the files; "" if nothing."""
    refused = dict.fromkeys(
        use.qualified_name for use in checkpoint.globals if use.safety is not Safety.SAFE
    )
    names = join_limited(tuple(refused), 3, quote_code)
    reason = names or checkpoint.weights_only_refusal
    files = f"{'the files of ' if is_index_name(weights_name) else ''}{quote_code(weights_name)}"
    call = "torch.load(weights_only=True)"
    return f"it opens {files} with {call}, which refuses {reason}" if reason else ""


def _explain_nested(checkpoint: Checkpoint, model_folder: ModelFolder) -> str:
    """Return where the state_dict is instead of at the top level; "" if it is there."""
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
        file_names = list_file_names(pipeline.path / name)
        for loader in ("diffusers", "transformers"):
            if weights_name := choose_weights(file_names, loader):
                folder = pipeline.path / name
                components[name] = ModelFolder(
                    folder, loader, str(value[1]), "config.json", weights_name
                )
                break
    return components


def _identify_peft(folder: Location, names: Sequence[str]) -> ModelFolder | None:
    if ADAPTER_CONFIG not in names:
        return None
    config = read_config(folder / ADAPTER_CONFIG)
    class_name = config.get("peft_type")
    return ModelFolder(
        folder,
        "peft",
        class_name if isinstance(class_name, str) else "",
        ADAPTER_CONFIG,
        choose_weights(names, "peft"),
    )


def _identify_diffusers(folder: Location, names: Sequence[str]) -> ModelFolder | None:
    config_name = next((n for n in (PIPELINE_CONFIG, "config.json") if n in names), "")
    if not config_name:
        return None
    class_name = read_config(folder / config_name).get("_class_name")
    if not isinstance(class_name, str):
        return None
    weights_name = choose_weights(names, "diffusers")
    return ModelFolder(folder, "diffusers", class_name, config_name, weights_name)


def _identify_timm(folder: Location, names: Sequence[str]) -> ModelFolder | None:
    if "config.json" not in names:
        return None
    config = read_config(folder / "config.json")
    class_name = config.get("architecture")
    if not isinstance(class_name, str) or "pretrained_cfg" not in config:
        return None
    return ModelFolder(folder, "timm", class_name, "config.json", choose_weights(names, "timm"))


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
        choose_weights(names, "transformers"),
        bool(config.get("auto_map")),
    )

"""A user's own class of a framework x its folder -> constructor arguments, from config.json."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from ckptool.formats.files.source import path_exists
from ckptool.loaders.config_checks import CODE_FIELDS, require_usable_fields
from ckptool.loaders.model_folder import read_config
from ckptool.loaders.offline import run_offline
from ckptool.locations import Location

CONFIG_NAME: Final = "config.json"


def find_folder_arguments(folder: Location, function: Any) -> Mapping[str, object]:
    """Return what the constructor takes of the configuration that `folder` has.

    A PreTrainedModel takes its own configuration class, a ModelMixin of diffusers the fields that
    it has parameters for. {} for what is neither.

    Code that the configuration names is left alone: the user's class takes its place.

    Raises:
        ReadError: the configuration is no JSON object, is too large or nested too deeply.
        ModuleError: it names files, or a number that no model has.
    """
    bases = {base.__module__.partition(".")[0] for base in getattr(function, "__mro__", ())}
    is_framework_class = bool(bases & {"transformers", "diffusers"})
    if not is_framework_class or not path_exists(folder / CONFIG_NAME):
        return {}
    fields = read_config(folder / CONFIG_NAME)
    fields = {name: value for name, value in fields.items() if name not in CODE_FIELDS}
    require_usable_fields(str(folder), CONFIG_NAME, fields)
    if "transformers" in bases and getattr(function, "config_class", None) is not None:
        with run_offline():
            return {"config": load_config(function.config_class, fields)}
    names = inspect.signature(function).parameters
    return {name: value for name, value in fields.items() if name in names}


def load_config(config_class: Any, fields: Mapping[str, Any]) -> Any:
    """Return the configuration as its class reads it, from a folder with these fields alone."""
    with TemporaryDirectory(prefix="ckptool-") as folder:
        (Path(folder) / CONFIG_NAME).write_text(json.dumps(fields))
        config = config_class.from_pretrained(folder, local_files_only=True)
    config.name_or_path = ""
    return config

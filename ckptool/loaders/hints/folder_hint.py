"""Checkpoint without a module -> the configuration in a folder around it, as a hint for people."""

from pathlib import Path
from typing import Final

from ckptool.errors import ReadError
from ckptool.formats.files.source import is_directory
from ckptool.loaders.model_folder import ModelFolder, find_model_folder
from ckptool.locations import Location
from ckptool.phrases import quote_python, quote_shell

_MAX_LEVELS: Final = 3
"""Folders above the checkpoint that are looked at: DeepSpeed writes two below the configuration."""


def suggest_folder(location: Location) -> str:
    """Return a sentence with the framework's configuration in a folder above, "" if there is none.

    Nothing is built from it: a folder that was not named does not choose the module.
    """
    model_folder = _find_folder_above(location)
    if model_folder is None:
        return ""
    path = model_folder.path
    says = f". In {quote_shell(str(path))}, {model_folder.evidence}"
    if location.parent == path and location.name == model_folder.weights_name:
        return f"{says}: give the folder, or --loader {model_folder.loader}"
    if model_folder.loader != "transformers" or not model_folder.class_name.isidentifier():
        return says
    folder = quote_python(str(path))
    call = f"transformers:{model_folder.class_name}(AutoConfig.from_pretrained({folder}))"
    return f"{says}: -m {quote_shell(call)}"


def _find_folder_above(location: Location) -> ModelFolder | None:
    if not isinstance(location, Path):
        return None
    above = location.parents if not is_directory(location) else (location, *location.parents)
    for folder in above[: _MAX_LEVELS + 1]:
        try:
            model_folder = find_model_folder(folder)
        except ReadError:
            continue
        if model_folder is not None:
            return model_folder
    return None

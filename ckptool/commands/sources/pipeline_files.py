"""A pipeline's folder -> one source for each of its models; and its files without weights, copied.

What `from_pretrained` loads afterwards has the same folders and configurations as before, and each
model in one file of the name that its framework looks for first.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ckptool.errors import ReadError, describe_os_error
from ckptool.formats.files.output_group import write_file
from ckptool.formats.files.source import list_names
from ckptool.loaders.model_folder import (
    PIPELINE_CONFIG,
    ModelFolder,
    find_model_folder,
    list_components,
)
from ckptool.locations import Location

_STEMS: Final = {
    ("diffusers", ".safetensors"): "diffusion_pytorch_model",
    ("diffusers", ".bin"): "diffusion_pytorch_model",
    ("transformers", ".safetensors"): "model",
    ("transformers", ".bin"): "pytorch_model",
}
"""Framework and suffix -> name of the file of weights that from_pretrained looks for."""
_WEIGHTS_PATTERN: Final = re.compile(
    r"(?i).*\.(safetensors|bin|pt|pth|ckpt|msgpack|h5|onnx|onnx_data|pb)(\.index(\.\w+)?\.json)?"
)


def find_pipeline(location: Location) -> ModelFolder | None:
    """Return the pipeline in a local folder; None if it is none.

    Raises:
        ReadError: its configuration is no JSON, or is too large.
    """
    if not isinstance(location, Path) or not (location / PIPELINE_CONFIG).is_file():
        return None
    model_folder = find_model_folder(location)
    return model_folder if model_folder is not None and model_folder.is_pipeline else None


def list_weight_files(pipeline: ModelFolder, suffix: str) -> dict[Path, str]:
    """Return the folder of each model -> path of its weights below the new pipeline.

    Args:
        pipeline: the pipeline.
        suffix: of the new files, ".safetensors" or ".bin".

    Raises:
        ReadError: a model has no weights, or there is no model.
    """
    components = list_components(pipeline)
    for name in list_names(pipeline.path):
        folder = Path(str(pipeline.path)) / name
        if name not in components and (folder / "config.json").is_file():
            reason = "has a config.json, and no weights that from_pretrained() reads"
            raise ReadError(folder, reason)
    if not components:
        raise ReadError(pipeline.path, f"{pipeline.config_name} names no folder with weights")
    return {
        Path(str(folder.path)): f"{name}/{_STEMS[folder.loader, suffix]}{suffix}"
        for name, folder in components.items()
    }


def copy_settings(pipeline: Path, target: Path, *, force: bool) -> None:
    """Copy all files but weights; model_index.json last, so that what is incomplete does not load.

    Raises:
        WriteError: a file exists already and is another one, or cannot be written.
        ReadError: a file cannot be read.
    """
    files = sorted(_iter_settings(pipeline), key=lambda file: file.name == PIPELINE_CONFIG)
    for file in files:
        new_file = target / file.relative_to(pipeline)
        try:
            content = file.read_bytes()
            if new_file.is_file() and new_file.read_bytes() == content:
                continue
        except OSError as error:
            raise ReadError(file, describe_os_error(error)) from error
        new_file.parent.mkdir(parents=True, exist_ok=True)
        write_file(new_file, content, force=force)


def _iter_settings(pipeline: Path) -> Iterator[Path]:
    for folder, folder_names, names in os.walk(pipeline):
        folder_names[:] = [name for name in folder_names if not name.startswith(".")]
        for name in names:
            file = Path(folder) / name
            if file.is_file() and not name.startswith(".") and not _WEIGHTS_PATTERN.fullmatch(name):
                yield file

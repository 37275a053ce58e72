"""Location -> Checkpoint: of a framework's folder, the weights that the framework would load."""

from ckptool.errors import ReadError
from ckptool.formats import open_checkpoint
from ckptool.formats.components import merge_components
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.loaders.model_folder import (
    ModelFolder,
    find_model_folder,
    list_components,
    note_framework_loading,
)
from ckptool.locations import Location
from ckptool.model import Checkpoint


def open_weights(
    location: Location, limits: Limits = DEFAULT_LIMITS, loader: str | None = None
) -> Checkpoint:
    """Describe the checkpoint at `location`: what every command means by a path.

    Args:
        location: a file, an index, or a folder, of which the framework's own order decides.
        limits: bounds on the memory and time that it may take.
        loader: the framework that loads it; None for that of the folder's configuration, "torch"
            for none.

    Raises:
        ReadError: it cannot be read, or nothing decides between several files of a folder.
    """
    model_folder = None if loader == "torch" else find_model_folder(location, loader)
    if model_folder is None or location != model_folder.path:
        return open_checkpoint(location, limits)
    if model_folder.is_pipeline:
        return _open_pipeline(model_folder, limits)
    try:
        checkpoint = open_checkpoint(location, limits, model_folder.weights_name)
    except ReadError as error:
        if model_folder.weights_name or error.path != location:
            raise
        reason = f"{model_folder.evidence}, which finds no weights here: it {error.reason}"
        raise ReadError(location, reason) from error
    return note_framework_loading(checkpoint, model_folder)


def _open_pipeline(pipeline: ModelFolder, limits: Limits) -> Checkpoint:
    """Describe the models of a pipeline as one checkpoint.

    Raises:
        ReadError: one of them cannot be read, or there is none.
    """
    components = {
        name: note_framework_loading(
            open_checkpoint(folder.path, limits, folder.weights_name), folder
        )
        for name, folder in list_components(pipeline).items()
    }
    if not components:
        raise ReadError(pipeline.path, f"{pipeline.config_name} names no folder with weights")
    return merge_components(pipeline.path, components)

"""Facts of a traced run -> the line of source, or the path, that a fix names."""

from pathlib import Path

from ckptool.model import Constancy, Kind, ModuleTensor, TensorInfo
from ckptool.rules.fixes.source_lines import (
    format_registration,
    format_saved_buffer,
    format_value_registration,
)
from ckptool.tracing.records import UnsavedValue


def name_command_file(file: str) -> str:
    """Return a path as a command would name it: relative to the current folder if inside it."""
    folder = f"{Path.cwd()}/"
    return file.removeprefix(folder)


def format_attribute_fix(unsaved: UnsavedValue) -> str:
    """Return what to write where unsaved state of a module is assigned."""
    name = unsaved.path.rpartition(".")[2]
    if unsaved.is_in_object:
        code = f"module.{unsaved.path} = ..."
        return f"save it next to the state_dict, and set it after the load: {code}"
    if unsaved.kind == "value":
        registration = format_value_registration(name, unsaved.old_text, unsaved.assigned_at)
        return f"{registration}; or save it next to the state_dict and set it after the load"
    module_tensor = _describe_module_tensor(unsaved)
    if unsaved.kind == Kind.NON_PERSISTENT_BUFFER:
        return f"Save its value: {format_saved_buffer(module_tensor)}"
    return format_registration(module_tensor)


def _describe_module_tensor(unsaved: UnsavedValue) -> ModuleTensor:
    dtype = unsaved.text.partition(" ")[0]
    tensor = TensorInfo(unsaved.path, (), dtype, (), 0, None)
    return ModuleTensor(
        tensor,
        Kind(unsaved.kind),
        unsaved.owner,
        is_saved=False,
        constancy=Constancy.MUTATED if unsaved.is_changed else Constancy.UNKNOWN,
        follows_to=False,
        follows_dtype=False,
        assigned_at=unsaved.assigned_at,
        assigned_to=unsaved.assigned_to,
    )

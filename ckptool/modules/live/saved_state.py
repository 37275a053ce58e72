"""nn.Module -> ModuleInfo of its state_dict alone: keys, shapes and classes, without values.

It takes milliseconds, and is enough where a file's keys and shapes are the module's.
"""

from typing import TYPE_CHECKING

from ckptool.model import Constancy, Kind, ModuleInfo, ModuleTensor
from ckptool.modules.live.registered import list_members, list_registered
from ckptool.modules.module_info import (
    call_state_dict,
    describe_class,
    describe_non_tensor,
    split_tensors,
)
from ckptool.modules.tensors.tensor_info import ModuleStorages, describe_tensor
from ckptool.modules.walk import get_qualified_name

if TYPE_CHECKING:
    from torch import Tensor, nn


def describe_saved_state(module: "nn.Module", target: str) -> ModuleInfo:
    """Describe what the state_dict of a live module has; what it lacks is not looked for.

    The module has no loading code of its own: then its classes decide how it loads.

    Raises:
        ModuleError: its state_dict() raises, or returns no mapping.
    """
    tensors, non_tensors = split_tensors(call_state_dict(module, target))
    kinds = {registered.key: registered.kind for registered in list_registered(module)}
    members = dict(list_members(module))
    examples = {type(member): member for member in members.values()}
    owners = {prefix: get_qualified_name(type(member)) for prefix, member in members.items()}
    classes = {cls: describe_class(member) for cls, member in examples.items()}
    storages = ModuleStorages()

    def describe(key: str, tensor: "Tensor") -> ModuleTensor:
        kind = kinds.get(key, Kind.ATTRIBUTE)
        return ModuleTensor(
            tensor=describe_tensor(key, tensor, kind, storages),
            kind=kind,
            owner=owners.get(key.rpartition(".")[0], owners[""]),
            is_saved=True,
            constancy=Constancy.UNKNOWN,
            follows_to=True,
            follows_dtype=True,
        )

    return ModuleInfo(
        target=target,
        tensors={key: describe(key, tensor) for key, tensor in tensors.items()},
        non_tensors={key: describe_non_tensor(value) for key, value in non_tensors.items()},
        modules={prefix: classes[type(member)] for prefix, member in members.items()},
    )

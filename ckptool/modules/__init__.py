"""nn.Module -> ModuleInfo: all tensors of a live module, saved and unsaved."""

from ckptool.modules.capture import (
    describe_module,
    examine_and_build,
    examine_module,
    rebuild_with_seed,
)
from ckptool.modules.locate import class_exists
from ckptool.modules.target import ModuleSpec

__all__ = [
    "ModuleSpec",
    "class_exists",
    "describe_module",
    "examine_and_build",
    "examine_module",
    "rebuild_with_seed",
]

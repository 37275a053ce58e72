"""nn.Module -> ModuleInfo: all tensors of a live module, saved and unsaved."""

from ckptool.modules.class_lookup import class_exists
from ckptool.modules.describe import (
    describe_module,
    examine_and_build,
    examine_module,
    rebuild_with_seed,
)
from ckptool.modules.import_target import ModuleSpec

__all__ = [
    "ModuleSpec",
    "class_exists",
    "describe_module",
    "examine_and_build",
    "examine_module",
    "rebuild_with_seed",
]

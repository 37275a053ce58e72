"""nn.Module -> ModuleInfo: all tensors of a live module, saved and unsaved."""

from ckptool.modules.capture import describe, examine, examine_live, replay
from ckptool.modules.locate import class_exists
from ckptool.modules.target import ModuleSpec

__all__ = ["ModuleSpec", "class_exists", "describe", "examine", "examine_live", "replay"]

"""nn.Module -> ModuleState: what a live module holds, saves and leaves out."""

from ckptool.modules.capture import describe, examine, examine_live, replay
from ckptool.modules.locate import class_exists
from ckptool.modules.target import ModuleSpec

__all__ = ["ModuleSpec", "class_exists", "describe", "examine", "examine_live", "replay"]

"""nn.Module -> ModuleInfo: all tensors of a live module, saved and unsaved."""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
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

_HOMES: Final = {
    "ModuleSpec": "ckptool.modules.import_target",
    "class_exists": "ckptool.modules.class_lookup",
}
"""Module of each name that is not in `ckptool.modules.describe`."""


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a name on first access: a traced process walks modules and describes none."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES.get(name, "ckptool.modules.describe")), name)

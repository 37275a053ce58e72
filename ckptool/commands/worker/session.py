"""ModuleTarget -> ModuleInfo and instance, described once for all requests of a command."""

from typing import TYPE_CHECKING

from ckptool.commands.sources.file_arguments import FileArguments
from ckptool.commands.target import ModuleTarget
from ckptool.model import ModuleInfo

if TYPE_CHECKING:
    from torch import nn


class ModuleSession:
    """The modules that the requests of one command have built."""

    def __init__(self) -> None:
        self._modules: dict[str, tuple[ModuleInfo, nn.Module]] = {}

    def examine_module(
        self, target: ModuleTarget, file_arguments: FileArguments
    ) -> "tuple[ModuleInfo, nn.Module]":
        """Return the description and an instance of a module; built the first time only.

        Raises:
            ModuleError: it cannot be imported or built.
            UsageError: it has no such sub-module.
        """
        name = target.module if isinstance(target.module, str) else id(target.module)
        key = repr((name, target.kwargs, file_arguments, target.search_paths, target.into))
        if key not in self._modules:
            self._modules[key] = target.examine_module(file_arguments)
        return self._modules[key]

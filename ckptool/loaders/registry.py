"""Name of a framework -> its FrameworkLoader, with the framework imported offline."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.errors import ModuleError
from ckptool.loaders.model_folder import get_install_hint
from ckptool.locations import Location

if TYPE_CHECKING:
    from torch import nn

_MODULES: Final = {
    "transformers": "ckptool.loaders.transformers_models",
    "diffusers": "ckptool.loaders.diffusers_models",
    "peft": "ckptool.loaders.peft_adapters",
    "timm": "ckptool.loaders.timm_models",
    "lightning": "ckptool.loaders.lightning_modules",
}


class FrameworkLoader(Protocol):
    """What the file of a framework has; each function imports the framework itself."""

    PACKAGES: tuple[str, ...]
    """Packages that it needs."""

    def build_model(self, folder: Location, class_name: str) -> "nn.Module":
        """Build the module that the folder's configuration describes, with initial values.

        Raises:
            ModuleError: the configuration is refused, or names no class of the framework.
        """
        ...

    def accepts_module(self, module: "nn.Module") -> bool:
        """Whether the framework's loader loads modules of this class."""
        ...

    def load_state(
        self, module: "nn.Module", state: Mapping[str, Any]
    ) -> "tuple[nn.Module, LoadingInfo]":
        """Load a state as the framework does into a new instance like `module`; report it.

        Tensors on meta stay there: then nothing is read, and the report is all that counts.
        """
        ...

    def make_inputs(self, module: "nn.Module") -> Mapping[str, Any]:
        """Return keyword arguments of forward; {} if the configuration does not say enough."""
        ...


def get_loader(name: str) -> FrameworkLoader:
    """Return the loader of a framework.

    Raises:
        ModuleError: the framework is not installed; the message says what to install.
    """
    missing_packages = list_missing_packages(name)
    if missing_packages:
        packages = ", ".join(missing_packages)
        raise ModuleError(name, f"{packages} is not installed here: {get_install_hint(name)}")
    return _import_loader(name)


def is_installed(name: str) -> bool:
    """Whether the packages of a framework are installed here; none is imported."""
    return not list_missing_packages(name)


def list_missing_packages(*names: str) -> tuple[str, ...]:
    """Return the packages of frameworks that cannot be found; none is imported."""
    packages = dict.fromkeys(p for name in names for p in _import_loader(name).PACKAGES)
    return tuple(package for package in packages if not _is_found(package))


def _import_loader(name: str) -> FrameworkLoader:
    return cast("FrameworkLoader", import_module(_MODULES[name]))


def _is_found(package: str) -> bool:
    """Whether an import system finds the package; a finder may refuse it by raising."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def build_folder_model(
    loader: str, folder: Location, class_name: str, base: Path | None = None
) -> "nn.Module":
    """Build the module of a framework's folder: the target that a ModuleSpec names.

    Args:
        loader: name of the framework.
        folder: the folder.
        class_name: class that its configuration names.
        base: folder of the model that an adapter is for; None for the one that it names.

    Raises:
        ModuleError: as `FrameworkLoader.build_model`.
    """
    if base is not None:
        from ckptool.loaders.peft_adapters import build_adapter_model

        get_loader(loader)
        return build_adapter_model(folder, base)
    return get_loader(loader).build_model(folder, class_name)

"""Loaders of frameworks: a folder or a module -> what the framework's own loader does with a state.

One file per framework, with the functions of `FrameworkLoader`; the framework is imported in them,
and nowhere else.
"""

from ckptool.loaders.describe import describe_for_loader, load_with_framework
from ckptool.loaders.model_folder import LOADER_NAMES, ModelFolder, find_model_folder
from ckptool.loaders.registry import FrameworkLoader, get_loader

__all__ = [
    "LOADER_NAMES",
    "FrameworkLoader",
    "ModelFolder",
    "describe_for_loader",
    "find_model_folder",
    "get_loader",
    "load_with_framework",
]

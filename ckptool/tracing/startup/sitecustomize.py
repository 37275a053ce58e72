"""Run by Python at the start of every process of a traced command: waits for torch.

Python imports the first `sitecustomize` on its path. This one puts a finder in place, takes its
folder off `sys.path`, and then imports the next `sitecustomize`, as Python would have done without
it. Nothing of ckptool is imported before torch is.
"""

import os
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_STARTUP_FOLDER = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (pathlib is slow here)
_OWN_PACKAGES = frozenset({"ckptool", "msgspec", "blake3"})
_HOOKED_MODULES = frozenset(
    {
        "torch",
        "torch.distributed.checkpoint",
        "safetensors.torch",
        "lightning_fabric.utilities.cloud_io",
        "lightning.fabric.utilities.cloud_io",
        "transformers.modeling_utils",
    }
)
"""Modules whose functions are wrapped once they are imported."""


class OwnPackageFinder:
    """Last finder: ckptool and what it needs, where the traced interpreter does not have them."""

    folders = tuple(filter(None, os.environ.get("CKPTOOL_TRACE_PATH", "").split(os.pathsep)))

    def find_spec(
        self,
        name: str,
        path: object = None,
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if path is not None or name not in _OWN_PACKAGES:
            return None
        return PathFinder.find_spec(name, list(self.folders))


class TorchHook:
    """First finder: finds nothing itself, and has torch's functions wrapped after its import."""

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _HOOKED_MODULES:
            return None
        for finder in sys.meta_path:
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                _call_after_import(spec)
                return spec
        return None


def _call_after_import(spec: ModuleSpec) -> None:
    """Have `spec`'s module wrapped when it was executed; the loader stays the object that it is."""
    loader: Any = spec.loader
    original = getattr(loader, "exec_module", None)
    if original is None:
        return

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        original(module)
        _wrap_module(module.__name__)

    try:
        loader.exec_module = exec_module
    except AttributeError:  # a loader without a __dict__: this module is not traced
        return


def _wrap_module(name: str) -> None:
    try:
        from ckptool.tracing.process_trace import wrap_module

        wrap_module(name)
    except Exception as error:  # noqa: BLE001 (an error of ours never ends the user's run)
        _report_failure(f"{type(error).__name__}: {error}")


def _report_failure(reason: str) -> None:
    """Leave a note for the parent; without msgspec, which may be what is missing."""
    import json

    record = {"type": "UncheckedRecord", "what": f"a process ({sys.argv[0]})", "reason": reason}
    try:
        folder = os.environ["CKPTOOL_TRACE"]
        with open(os.path.join(folder, f"{os.getpid()}-failed.jsonl"), "a") as file:  # noqa: PTH118, PTH123
            file.write(json.dumps(record) + "\n")
    except (OSError, KeyError):
        return


def _import_next() -> None:
    """Import the sitecustomize that Python would have found without this one."""
    own_module = sys.modules.pop("sitecustomize", None)
    try:
        import_module("sitecustomize")
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        if own_module is not None:
            sys.modules.setdefault("sitecustomize", own_module)


if os.environ.get("CKPTOOL_TRACE"):
    sys.meta_path.insert(0, TorchHook())
    sys.meta_path.append(OwnPackageFinder())
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _STARTUP_FOLDER]  # noqa: PTH100
_import_next()

"""Configuration -> its lock files, each with the module that it is of."""

import os
import re
from pathlib import Path
from typing import Final

from ckptool.commands.sources.configured_models import build_entry_target
from ckptool.commands.target import ModuleTarget
from ckptool.compare.contracts.contract_lock import is_lock
from ckptool.config import ModelEntry, ProjectConfig
from ckptool.errors import UsageError
from ckptool.locations import is_remote

_MODULE_NAME: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_module_name(text: str) -> bool:
    """Whether `text` has the form "package.module:Name"."""
    return bool(_MODULE_NAME.fullmatch(text))


def list_configured_locks(config: ProjectConfig) -> dict[Path, ModuleTarget]:
    """Return each lock that `against` of an entry names, with its module, in order.

    A lock that is not there yet is known by its suffix, .json; paths are relative to the working
    directory.

    Raises:
        UsageError: no entry names a lock, or two modules have the same one.
    """
    targets: dict[Path, ModuleTarget] = {}
    for entry in config.settings.models:
        path = _find_lock(entry, config)
        if path is None:
            continue
        target = build_entry_target(entry, config)
        other = targets.setdefault(path, target)
        if (other.module, other.kwargs) != (target.module, target.kwargs):
            reason = f"is the lock of {other.module} and of {target.module}: give each its own"
            raise UsageError(f"{path}: {reason}")
    if not targets:
        raise UsageError(
            'the configuration names no lock: add against = "NAME.lock.json" to its [[models]], or '
            "run ckptool lock without --all"
        )
    return targets


def _find_lock(entry: ModelEntry, config: ProjectConfig) -> Path | None:
    """Return the lock that an entry is held to; None where that is a checkpoint or a module."""
    if entry.against is None or is_module_name(entry.against) or is_remote(entry.against):
        return None
    path = Path(os.path.relpath(config.directory / entry.against))
    is_named = is_lock(path) if path.exists() else path.suffix == ".json"
    return path if is_named else None


def find_locked_module(config: ProjectConfig, lock: Path) -> ModuleTarget | None:
    """Return the module of the entry of `[[models]]` whose `against` is `lock`; None for none."""
    for entry in config.settings.models:
        path = _find_lock(entry, config)
        if path is not None and path.absolute() == lock.absolute():
            return build_entry_target(entry, config)
    return None

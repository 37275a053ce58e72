"""What user code may change of the whole process: read, kept for that code, put back for us.

Between two pieces of user code the process is as its caller left it: with the caller's default
dtype, folder, signal handlers and so on. What the code of a module has set is set again when more
of its code is run, as in a process that runs nothing else.
"""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from ckptool.modules.world.python_state import ALARM, PYTHON_STATE, STREAMS, Setting
from ckptool.modules.world.torch_state import TORCH_STATE

_NOT_KEPT: Final = {ALARM, STREAMS}
"""What is put back for us, and not set again for the code that set it."""


@dataclass(frozen=True, slots=True)
class ListAdditions:
    """What was put before and behind the items of a list."""

    before: list[Any]
    behind: list[Any]


@dataclass(frozen=True, slots=True)
class NameChanges:
    """Names that were replaced, added or (with the value `_REMOVED`) removed."""

    values: dict[Any, Any]


World = dict[str, Any]
"""How settings differ from the caller's where the code of one module runs: the change by name."""
_REMOVED: Final = object()
_WORLDS: Final[dict[str, World]] = {}
"""By the name of the Python module: what its import sets is not set by a second import."""
_CURRENT_WORLD: Final[ContextVar[World | None]] = ContextVar("_CURRENT_WORLD", default=None)
_IS_INSIDE: Final = ContextVar("_IS_INSIDE", default=False)


@contextmanager
def use_world(python_module: str, *, is_new: bool = False) -> Iterator[None]:
    """Context in which `user_world` is that of the code of one Python module.

    With `is_new`, the module is about to be imported once more, and nothing is kept of before.
    """
    world = {} if is_new else _WORLDS.setdefault(python_module, {})
    token = _CURRENT_WORLD.set(world)
    try:
        yield
    finally:
        _CURRENT_WORLD.reset(token)


@contextmanager
def user_world() -> Iterator[None]:
    """Context for user code: with what it has set before; afterwards all is as the caller had it.

    Without `use_world` around it nothing is kept. Inside another, it does nothing. A RuntimeWarning
    names what could not be put back.
    """
    if _IS_INSIDE.get():
        yield
        return
    current_world = _CURRENT_WORLD.get()
    world: World = {} if current_world is None else current_world
    settings = {**PYTHON_STATE, **(TORCH_STATE if "torch" in sys.modules else {})}
    caller_values = _read_all(settings)
    start_values = {
        name: _apply_change(value, world[name]) if name in world else value
        for name, value in caller_values.items()
    }
    _write_changed(settings, caller_values, start_values)
    token = _IS_INSIDE.set(True)
    try:
        yield
    finally:
        _IS_INSIDE.reset(token)
        end_values = _read_all(settings)
        for name, value in end_values.items():
            if name not in _NOT_KEPT and not _are_equal(value, start_values.get(name)):
                world[name] = _find_change(caller_values.get(name), value)
        refused = _write_changed(settings, end_values, caller_values)
        if refused:
            # The same filters as before: the user's code may have set them to raise, or to ignore.
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn(
                    f"not put back as it was before the module's code ran: {', '.join(refused)}",
                    RuntimeWarning,
                    stacklevel=2,
                )


def _find_change(old: Any, new: Any) -> Any:
    """Return how a setting was changed: additions to a list, names of a mapping, or its value."""
    if isinstance(old, dict) and isinstance(new, dict):
        changed = {
            name: new.get(name, _REMOVED)
            for name in old.keys() | new.keys()
            if not _are_equal(old.get(name, _REMOVED), new.get(name, _REMOVED))
        }
        return NameChanges(changed)
    if isinstance(old, list) and isinstance(new, list):
        for start in range(len(new) - len(old) + 1):
            if new[start : start + len(old)] == old:
                return ListAdditions(new[:start], new[start + len(old) :])
    return new


def _apply_change(value: Any, change: Any) -> Any:
    if isinstance(change, NameChanges):
        result = {**value, **change.values}
        return {name: item for name, item in result.items() if item is not _REMOVED}
    if isinstance(change, ListAdditions):
        return [*change.before, *value, *change.behind]
    return change


def _read_all(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Return name -> value; without those that this version of torch or this system lacks."""
    values: dict[str, Any] = {}
    for name, (read, _) in settings.items():
        with suppress(Exception):
            values[name] = read()
    return values


def _write_changed(
    settings: Mapping[str, Setting], old_values: Mapping[str, Any], values: Mapping[str, Any]
) -> list[str]:
    """Set what differs; return the settings that raise, each with the reason."""
    refused = []
    for name, value in values.items():
        if not _are_equal(value, old_values.get(name)):
            try:
                settings[name][1](value)
            except Exception as error:  # noqa: BLE001 (of an object that user code put there)
                refused.append(f"{name} ({type(error).__name__})")
    return refused


def _are_equal(value: Any, other: Any) -> bool:
    try:
        return bool(value == other)
    except Exception:  # noqa: BLE001 (of an object that user code put there)
        return False

"""What user code may change of the whole process: read, kept for that code, put back for us.

Between two pieces of user code the process is as its caller left it: with the caller's default
dtype, folder, signal handlers and so on. What the code of a module has set is set again when more
of its code is run, as in a process that runs nothing else.
"""

import builtins
import gc
import json
import locale
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from ckptool.modules.torch_state import TORCH_STATE

Setting = tuple[Callable[[], Any], Callable[[Any], None]]
"""Reads a value that can be compared, and sets it."""


def attribute_setting(owner: Any, *names: str) -> Setting:
    """Return the setting of some attributes of an object."""

    def write(values: tuple[Any, ...]) -> None:
        for name, value in zip(names, values, strict=True):
            setattr(owner, name, value)

    return lambda: tuple(getattr(owner, name) for name in names), write


def _list_setting(owner: Any, name: str) -> Setting:
    def write(values: list[Any]) -> None:
        getattr(owner, name)[:] = values

    return lambda: list(getattr(owner, name)), write


def _names_setting(names: MutableMapping[str, Any]) -> Setting:
    """Return the setting of the names of a module that are replaced, added or removed."""

    def write(values: Mapping[str, Any]) -> None:
        for name in names.keys() - values.keys():
            del names[name]
        names.update(values)

    return lambda: dict(names), write


def _read_folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 (compared and set as text)
    except OSError:
        return ""


def _write_folder(folder: str) -> None:
    with suppress(OSError):
        os.chdir(folder)


def _read_signal_handlers() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in _SIGNALS}


def _write_signal_handlers(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _stop_alarm(is_set: bool) -> None:  # noqa: FBT001
    if not is_set:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _write_warning_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # type: ignore[attr-defined]


def _write_locale(name: str) -> None:
    locale.setlocale(locale.LC_ALL, name)


def _write_gc(state: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if state[0] else gc.disable)()
    gc.set_threshold(*state[1])


_SIGNALS: Final = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE",
                 "SIGCHLD", "SIGQUIT", "SIGABRT", "SIGSEGV", "SIGFPE", "SIGVTALRM", "SIGPROF")
    if hasattr(signal, name)
)  # fmt: skip
_PYTHON_STATE: Final[dict[str, Setting]] = {
    "current folder": (_read_folder, _write_folder),
    "sys.path": _list_setting(sys, "path"),
    "sys.path_hooks": _list_setting(sys, "path_hooks"),
    "sys.meta_path": _list_setting(sys, "meta_path"),
    "sys.argv": _list_setting(sys, "argv"),
    "environment": _names_setting(os.environ),
    "warning filters": (lambda: list(warnings.filters), _write_warning_filters),
    "showwarning": attribute_setting(warnings, "showwarning"),
    "signal handlers": (_read_signal_handlers, _write_signal_handlers),
    "streams": attribute_setting(sys, "stdin", "stdout", "stderr"),
    "hooks": attribute_setting(sys, "excepthook", "displayhook", "unraisablehook"),
    "thread hook": attribute_setting(threading, "excepthook"),
    "recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "garbage collection": (lambda: (gc.isenabled(), gc.get_threshold()), _write_gc),
    "locale": (lambda: locale.setlocale(locale.LC_ALL), _write_locale),
    "logging": attribute_setting(logging.root, "level"),
    "logging.disable": attribute_setting(logging.root.manager, "disable"),
    "log handlers": _list_setting(logging.root, "handlers"),
    "builtins": _names_setting(vars(builtins)),
    "json": _names_setting(vars(json)),
}
_ALARM: Final = "alarm"
if hasattr(signal, "setitimer"):
    _PYTHON_STATE[_ALARM] = (lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0, _stop_alarm)
_NOT_KEPT: Final = {_ALARM, "streams"}
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

    Without `use_world` around it nothing is kept. Inside another, it does nothing.
    """
    if _IS_INSIDE.get():
        yield
        return
    current_world = _CURRENT_WORLD.get()
    world: World = {} if current_world is None else current_world
    settings = {**_PYTHON_STATE, **(TORCH_STATE if "torch" in sys.modules else {})}
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
        _write_changed(settings, end_values, caller_values)


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
) -> None:
    for name, value in values.items():
        if not _are_equal(value, old_values.get(name)):
            with suppress(Exception):
                settings[name][1](value)


def _are_equal(value: Any, other: Any) -> bool:
    try:
        return bool(value == other)
    except Exception:  # noqa: BLE001 (of an object that user code put there)
        return False

"""Settings of Python that hold for the whole process."""

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
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Final

Setting = tuple[Callable[[], Any], Callable[[Any], None]]
"""Reads a value that can be compared, and sets it."""


def _attribute_setting(owner: Any, *names: str) -> Setting:
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
ALARM: Final = "alarm"
STREAMS: Final = "streams"
PYTHON_STATE: Final[dict[str, Setting]] = {
    "current folder": (_read_folder, _write_folder),
    "sys.path": _list_setting(sys, "path"),
    "sys.path_hooks": _list_setting(sys, "path_hooks"),
    "sys.meta_path": _list_setting(sys, "meta_path"),
    "sys.argv": _list_setting(sys, "argv"),
    "environment": _names_setting(os.environ),
    "warning filters": (lambda: list(warnings.filters), _write_warning_filters),
    "showwarning": _attribute_setting(warnings, "showwarning"),
    "signal handlers": (_read_signal_handlers, _write_signal_handlers),
    STREAMS: _attribute_setting(sys, "stdin", "stdout", "stderr"),
    "hooks": _attribute_setting(sys, "excepthook", "displayhook", "unraisablehook"),
    "thread hook": _attribute_setting(threading, "excepthook"),
    "recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "garbage collection": (lambda: (gc.isenabled(), gc.get_threshold()), _write_gc),
    "locale": (lambda: locale.setlocale(locale.LC_ALL), _write_locale),
    "logging": _attribute_setting(logging.root, "level"),
    "logging.disable": _attribute_setting(logging.root.manager, "disable"),
    "log handlers": _list_setting(logging.root, "handlers"),
    "builtins": _names_setting(vars(builtins)),
    "json": _names_setting(vars(json)),
}
if hasattr(signal, "setitimer"):
    PYTHON_STATE[ALARM] = (lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0, _stop_alarm)

"""nn.Module.__init__ -> a callback when the outermost constructor of the module has returned.

No class of the user is changed. Its constructor's frame is on the stack while nn.Module.__init__
runs; it is watched until it returns: by sys.monitoring from Python 3.12 on, by a trace function
before. Where a debugger or a profiler traces already, nothing is watched, and a module's state
counts from the first load, optimizer or save instead.
"""

import inspect
import sys
import threading
from collections.abc import Callable
from dis import opmap
from functools import partial
from math import isfinite
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

_MAX_FRAMES = 200
_MAX_ITEMS: Final = 16
_MAX_CHARS: Final = 100
_TOOL_NAME = "ckptool"
_RETURN: Final = opmap["RETURN_VALUE"]
"""The only instruction that returns from a function on Python 3.11."""

_state = threading.local()


Callback = Callable[[Any, dict[str, str] | None], None]
"""Gets the module, and the arguments of its constructor as literals (see `_read_arguments`)."""


def call_after_construction(module: object, callback: Callback) -> None:
    """Call `callback` when the outermost constructor that builds `module` has returned.

    Modules built meanwhile in this thread are parts of it: nothing is called for them.
    """
    if getattr(_state, "is_constructing", False):
        return
    constructor = _find_outermost_constructor(module, sys._getframe(2))  # noqa: SLF001
    if constructor is None:
        return
    arguments = _read_arguments(constructor, type(module))
    if sys.version_info >= (3, 12):
        _watch_by_monitoring(constructor, partial(callback, module, arguments))
    else:
        _watch_by_tracing(constructor, partial(callback, module, arguments))


def _read_arguments(constructor: FrameType, cls: type) -> dict[str, str] | None:
    """Return parameter name -> literal of a constructor that has just called super().__init__().

    Without those that have their default value. None if one is no literal, or too long a one, or if
    it has *args or **kwargs.
    """
    code, values = constructor.f_code, constructor.f_locals
    if code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return None
    names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    if not all(name in values and _is_literal(values[name]) for name in names):
        return None
    function: Any = inspect.unwrap(cls.__init__)  # type: ignore[misc]
    if getattr(function, "__code__", None) is not code:
        return None  # called by a constructor with other parameters
    parameters = inspect.signature(function).parameters
    return {name: repr(values[name]) for name in names if values[name] != parameters[name].default}


def _is_literal(value: object) -> bool:
    if type(value) in {tuple, list}:
        assert isinstance(value, tuple | list)
        return len(value) <= _MAX_ITEMS and all(map(_is_literal, value))
    if type(value) is str:
        return len(value) <= _MAX_CHARS
    return value is None or (
        type(value) in {bool, int} or (type(value) is float and isfinite(value))
    )


def _find_outermost_constructor(module: object, frame: FrameType | None) -> FrameType | None:
    """Return the last frame, going up from `frame`, that is an `__init__` of `module` itself.

    A constructor of another module farther up is one that `module` is a part of.
    """
    outermost = None
    for _ in range(_MAX_FRAMES):
        if frame is None:
            break
        code = frame.f_code
        if code.co_name == "__init__" and code.co_argcount:
            first_argument = frame.f_locals.get(code.co_varnames[0])
            if first_argument is module:
                outermost = frame
        frame = frame.f_back
    return outermost


def _watch_by_tracing(constructor: FrameType, finish: Callable[[], None]) -> None:
    if sys.gettrace() is not None:
        return

    def trace_frame(frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG001
        if event == "return":
            sys.settrace(None)
            _state.is_constructing = False
            if frame.f_code.co_code[frame.f_lasti] == _RETURN:  # else an exception leaves it
                finish()
        return trace_frame

    def ignore_call(frame: FrameType, event: str, argument: object) -> None:  # noqa: ARG001
        return None

    _state.is_constructing = True
    constructor.f_trace_lines = False
    constructor.f_trace = trace_frame
    sys.settrace(ignore_call)


class _Watch(NamedTuple):
    """A constructor that has not returned yet."""

    frame: FrameType
    finish: Callable[[], None]


_watches: Final[dict[int, _Watch]] = {}
"""Thread ID -> the outermost constructor that the thread is in."""


def _watch_by_monitoring(constructor: FrameType, finish: Callable[[], None]) -> None:
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    tool = _find_tool(monitoring)
    if tool is None:
        return
    events = monitoring.events

    def handle_return(code: CodeType, offset: int, value: object) -> None:  # noqa: ARG001
        watch = _end_watch(monitoring, tool, sys._getframe(1))  # noqa: SLF001
        if watch is not None:
            watch.finish()

    def handle_unwind(code: CodeType, offset: int, error: BaseException) -> None:  # noqa: ARG001
        _end_watch(monitoring, tool, sys._getframe(1))  # noqa: SLF001

    _state.is_constructing = True
    _watches[threading.get_ident()] = _Watch(constructor, finish)
    monitoring.register_callback(tool, events.PY_RETURN, handle_return)
    monitoring.register_callback(tool, events.PY_UNWIND, handle_unwind)
    monitoring.set_local_events(tool, constructor.f_code, events.PY_RETURN)
    monitoring.set_events(tool, events.PY_UNWIND)  # of a single function it cannot be asked for


def _end_watch(monitoring: Any, tool: int, frame: FrameType) -> _Watch | None:
    """Forget the watch of a constructor that returns or raises; None for any other function."""
    watch = _watches.get(threading.get_ident())
    if watch is None or watch.frame is not frame:
        return None
    del _watches[threading.get_ident()]
    _state.is_constructing = False
    if all(other.frame.f_code is not frame.f_code for other in list(_watches.values())):
        monitoring.set_local_events(tool, frame.f_code, 0)
    if not _watches:
        monitoring.set_events(tool, 0)
    return watch


def _find_tool(monitoring: Any) -> int | None:
    """Return a tool ID for this process, None if all are taken."""
    for tool in (4, 3):
        name = monitoring.get_tool(tool)
        if name == _TOOL_NAME:
            return tool
        if name is None:
            monitoring.use_tool_id(tool, _TOOL_NAME)
            return tool
    return None

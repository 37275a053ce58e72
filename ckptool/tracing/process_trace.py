"""torch's functions -> wrappers that record each load and save of this process.

A wrapper calls the original with the arguments that it was given, and returns or raises what that
does. Whatever goes wrong in between is recorded as not checked, and the run goes on.
"""

import atexit
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

from msgspec.structs import replace

from ckptool.tracing.records import (
    AnyRecord,
    ProcessEndRecord,
    ProcessRecord,
    UncheckedRecord,
)

if TYPE_CHECKING:
    from ckptool.tracing.resume_states import ResumeStates

_MAX_ERROR_CHARS: Final = 2000
_MAX_CAUSES: Final = 20


class RecordSink(Protocol):
    """What takes the records: a file, or a list."""

    def write_record(self, record: AnyRecord) -> None: ...


class ProcessTrace:
    """The trace of one process: what it built, read and made, and where records go."""

    def __init__(self, sink: RecordSink) -> None:
        from ckptool.tracing.module_states import ModuleStates
        from ckptool.tracing.origins import TensorOrigins
        from ckptool.tracing.random_generators import RandomGenerators
        from ckptool.tracing.training_objects import TrainingObjects

        self.sink = sink
        self.states = ModuleStates()
        self.origins = TensorOrigins()
        self.objects = TrainingObjects()
        self.generators = RandomGenerators()
        self.resume_states: ResumeStates | None = None
        self._local = threading.local()
        self._reported: set[str] = set()

    @property
    def depth(self) -> int:
        """Wrapped functions that this thread is in."""
        return int(getattr(self._local, "depth", 0))

    @contextmanager
    def nest(self) -> Iterator[None]:
        self._local.depth = self.depth + 1
        try:
            yield
        finally:
            self._local.depth -= 1

    def write_record(self, record: AnyRecord) -> None:
        rank = os.environ.get("RANK", "0")
        rank_number = int(rank) if rank.isdecimal() else 0
        self.sink.write_record(replace(record, rank=rank_number, process=os.getpid()))

    def observe(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """Return what `function` returns; None, and a record of it once, if it raises."""
        try:
            with self.nest():
                return function(*args)
        except Exception as error:  # noqa: BLE001 (an error of ours never ends the user's run)
            reason = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
            if what not in self._reported:
                self._reported.add(what)
                self._try_to_write(UncheckedRecord(what=what, reason=reason))
            return None

    def _try_to_write(self, record: AnyRecord) -> None:
        with suppress(Exception):  # a full disk: there is nothing left to tell it to
            self.write_record(record)


class _ActiveTrace:
    """The trace that the wrappers of this process write to; None while nothing is traced."""

    trace: ProcessTrace | None = None


_ACTIVE: Final = _ActiveTrace()
_WRAPPED: Final[dict[str, list[tuple[Any, str, Any]]]] = {}
"""Wrapped module -> (object, attribute, original function), for unwrapping."""


def get_active_trace() -> ProcessTrace | None:
    """Return the trace to write to; None without one, and within a wrapped function or our own."""
    trace = _ACTIVE.trace
    return trace if trace is not None and trace.depth == 0 else None


def wrap_module(name: str) -> None:
    """Wrap the functions of an imported module; the first call begins the trace of the process."""
    if _ACTIVE.trace is None:
        from ckptool.tracing.record_files import RecordWriter

        _ACTIVE.trace = ProcessTrace(RecordWriter(os.environ["CKPTOOL_TRACE"]))
        _record_process(_ACTIVE.trace)
        _ACTIVE.trace.observe("the states of --resume-check", _begin_resume_states, _ACTIVE.trace)
    _wrap_functions(name)


def _wrap_functions(name: str) -> None:
    if name in _WRAPPED:
        return
    from ckptool.tracing.wrapped_functions import list_wrappers

    originals = _WRAPPED.setdefault(name, [])
    wrappers: dict[Any, Any] = {}
    for owner, attribute, make_wrapper in list_wrappers(name):
        original = vars(owner).get(attribute)
        if isinstance(original, staticmethod):
            function = original.__func__
            wrapper: Any = staticmethod(functools.wraps(function)(make_wrapper(function)))
        elif callable(original):
            # The same function under two names stays one function.
            wrapper = wrappers.get(original) or functools.wraps(original)(make_wrapper(original))
            wrappers[original] = wrapper
        else:
            continue
        originals.append((owner, attribute, original))
        setattr(owner, attribute, wrapper)


@contextmanager
def trace_process(sink: RecordSink) -> Iterator[None]:
    """Trace this process itself: each load and save is written to `sink`."""
    import_module("torch")
    import_module("safetensors.torch")
    previous, _ACTIVE.trace = _ACTIVE.trace, ProcessTrace(sink)
    from ckptool.tracing.wrapped_functions import HOOKED_MODULES

    wrapped_before = {*_WRAPPED}
    for name in HOOKED_MODULES:
        if name in sys.modules:
            _wrap_functions(name)
    try:
        yield
    finally:
        _ACTIVE.trace = previous
        for name in {*_WRAPPED} - wrapped_before:
            for owner, attribute, original in reversed(_WRAPPED.pop(name)):
                setattr(owner, attribute, original)


def _record_process(trace: ProcessTrace) -> None:
    atexit.register(_record_end, trace)
    version = str(getattr(sys.modules["torch"], "__version__", ""))
    words = getattr(sys, "orig_argv", sys.argv)
    trace.observe(
        "a process",
        trace.write_record,
        ProcessRecord(command=" ".join(map(str, words))[:_MAX_ERROR_CHARS], torch_version=version),
    )


def _begin_resume_states(trace: ProcessTrace) -> None:
    mode = os.environ.get("CKPTOOL_TRACE_STATES")
    if mode:
        from ckptool.tracing.resume_states import ResumeStates

        trace.resume_states = ResumeStates(trace, stops=mode == "stop")


def _record_end(trace: ProcessTrace) -> None:
    errors: list[str] = []
    error: BaseException | None = getattr(sys, "last_value", None)
    while error is not None and len(errors) < _MAX_CAUSES:
        errors.append(str(error)[:_MAX_ERROR_CHARS])
        error = error.__cause__ or error.__context__
    trace.observe(
        "the end of a process", trace.write_record, ProcessEndRecord(errors=tuple(errors))
    )

"""The child process in which a command runs user code: requests in, facts out.

It is given its pipes as the three standard streams. Before any other code runs, they are put away
and replaced: nothing but this file knows where answers go, and what user code prints, also to
descriptor 1, is output of user code.
"""

import itertools
import os
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn, TextIO

from msgspec import Raw

from ckptool.commands.worker import messages
from ckptool.commands.worker.messages import (
    Announcement,
    Answer,
    ChildSetup,
    Failure,
    Message,
    NamespaceNotice,
)
from ckptool.commands.worker.requests import ModuleRequest
from ckptool.commands.worker.session import ModuleSession
from ckptool.commands.worker.user_warnings import UserWarnings
from ckptool.config import TRUST_RULE, TrustRule
from ckptool.errors import CkptoolError
from ckptool.modules.user_code import format_exception_line

_PR_SET_PDEATHSIG: Final = 1
_MAX_TRACE_CHARS: Final = 20_000


def main(parent: int) -> NoReturn:
    """Answer the requests that follow the ChildSetup until the pipe ends; never returns.

    Args:
        parent: process that asks; this one ends with it.
    """
    status = 1
    try:
        _end_with_parent(parent)
        requests, answers = _take_pipes()
        send = _make_sender(answers)
        _import_early()
        user_warnings = UserWarnings()
        warnings.showwarning = user_warnings.add_warning
        frames = messages.read_frames(requests, None)
        for frame in itertools.islice(frames, 1):
            _set_up(pickle.loads(frame), send)  # noqa: S301 (of the command itself)
        session, flush = ModuleSession(), _make_flush(sys.stdout, sys.stderr)
        for frame in frames:
            number, request = pickle.loads(frame)  # noqa: S301 (of the command itself)
            reply = _answer(session, number, request)
            flush()
            if notice := user_warnings.take_notice():
                send(notice)
            send(reply)
        status = 0
    finally:
        os._exit(status)


def _set_up(setup: ChildSetup, send: Callable[[Message], None]) -> None:
    sys.path[:] = setup.import_path
    TRUST_RULE.set(
        TrustRule(
            setup.uses_file_kwargs,
            lambda target, arguments: send(Announcement(target, dict(arguments))),
            lambda target, parameter: send(NamespaceNotice(target, parameter)),
        )
    )


def _take_pipes() -> tuple[int, int]:
    """Return descriptors of requests and answers, which no other process can inherit.

    Standard input is empty from here on, and both output streams are what the parent shows.
    """
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if hasattr(os, "register_at_fork"):
        # A process that user code forks goes on with our code: it must not answer.
        os.register_at_fork(after_in_child=lambda: _close_all(requests, answers))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
    return requests, answers


def _close_all(*descriptors: int) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def _make_sender(descriptor: int) -> Callable[[Message], None]:
    """Return the function that sends a message; it has what it needs, whatever user code patches.

    In a process that was forked from this one it ends that process.
    """
    own_pid, getpid, end, write = os.getpid(), os.getpid, os._exit, os.write
    encode, write_frame = messages.encode, messages.write_frame

    def send(message: Message) -> None:
        if getpid() != own_pid:
            end(1)
        write_frame(lambda content: write(descriptor, content), encode(message))

    return send


def _make_flush(*streams: TextIO) -> Callable[[], None]:
    def flush() -> None:
        for stream in (*streams, sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()

    return flush


def _answer(session: ModuleSession, number: int, request: "ModuleRequest[Any]") -> Message:
    try:
        return Answer(number, Raw(messages.encode(request.answer(session))))
    except CkptoolError as error:
        name, arguments = messages.describe_error(error)
        return Failure(number, name, arguments, _format_trace(error))
    # Whatever user code raises where no `user_code` surrounds it: KeyboardInterrupt, SystemExit.
    except BaseException as error:  # noqa: BLE001
        reason = f"examining it raised {format_exception_line(error)}"
        arguments = (str(request.target.module), reason)
        return Failure(number, "ModuleError", arguments, _format_trace(error))


def _format_trace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))[-_MAX_TRACE_CHARS:]
    except Exception:  # noqa: BLE001 (of an exception of user code)
        return ""


def _import_early() -> None:
    """Import what every request needs while the parent reads the checkpoint."""
    # On import torch warns if numpy is missing; numpy is optional for torch and for ckptool.
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
    with suppress(ImportError):
        import ckptool.verification.loading.load_probe
        import ckptool.verification.target  # noqa: F401


def _end_with_parent(parent: int) -> None:
    """Have the kernel end this process with its parent, where it can."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if hasattr(os, "getppid") and os.getppid() != parent:
        os._exit(1)

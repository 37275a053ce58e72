"""SIGTERM and SIGHUP -> an exception, so that what was begun is cleaned up before the end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

from ckptool.errors import Interrupted

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
_ALL: Final = (signal.SIGINT, *_ENDING)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the body once, at the first SIGTERM or SIGHUP; later ones wait.

    A signal that the process was started to ignore (nohup) stays ignored. In a thread that is not
    the main one nothing is changed: Python gives no signals there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    ours = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, _end)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold all signals back while the body runs: a few system calls that belong together."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(number)

"""SIGTERM and SIGHUP -> Interrupted, so that cleanup code runs before the process ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

from ckptool.errors import Interrupted

_ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
_BLOCKED_SIGNALS: Final = (signal.SIGINT, *_ENDING_SIGNALS)


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise `Interrupted` in the body at the first SIGTERM or SIGHUP; ignore later ones.

    A signal with another handler, or ignored at process start (nohup), is left as it is. Outside
    the main thread nothing changes: Python delivers no signals there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handlers = {number: signal.getsignal(number) for number in _ENDING_SIGNALS}
    replaced_signals = [
        number for number, handler in previous_handlers.items() if handler is signal.SIG_DFL
    ]
    try:
        for number in replaced_signals:
            signal.signal(number, _raise_interrupted)
        yield
    finally:
        for number in replaced_signals:
            signal.signal(number, previous_handlers[number])


@contextmanager
def block_signals() -> Iterator[None]:
    """Block SIGINT, SIGTERM and SIGHUP during the body: a few system calls that belong together."""
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _raise_interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    for ending_signal in _ENDING_SIGNALS:
        signal.signal(ending_signal, signal.SIG_IGN)
    raise Interrupted(number)

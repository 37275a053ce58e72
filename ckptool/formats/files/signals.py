"""Signals -> exceptions, so that cleanup code runs before the process ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Final, NoReturn

from ckptool.errors import Interrupted

_ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
_BLOCKED_SIGNALS: Final = (signal.SIGINT, *_ENDING_SIGNALS)


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raise in the body at the first SIGTERM or SIGHUP `Interrupted`, at SIGINT KeyboardInterrupt.

    After SIGTERM or SIGHUP later ones are ignored. An exception that reaches the end of the body
    after a signal is replaced by the signal's: raised inside the lock code of `threading`, it comes
    out as "RuntimeError: release unlocked lock". A signal with another handler, or ignored at
    process start (nohup), is left as it is. Outside the main thread nothing changes: Python
    delivers no signals there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts: list[BaseException] = []

    def raise_interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        if number in _ENDING_SIGNALS:
            for ending_signal in _ENDING_SIGNALS:
                signal.signal(ending_signal, signal.SIG_IGN)
        interrupts.append(KeyboardInterrupt() if number == signal.SIGINT else Interrupted(number))
        raise interrupts[-1]

    previous_handlers = {
        number: handler
        for number in _BLOCKED_SIGNALS
        if (handler := signal.getsignal(number)) in {signal.SIG_DFL, signal.default_int_handler}
    }
    try:
        for number in previous_handlers:
            signal.signal(number, raise_interrupt)
        yield
    except Exception as error:
        if interrupts:
            raise interrupts[0] from error
        raise
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


@contextmanager
def block_signals() -> Iterator[None]:
    """Hold back SIGINT, SIGTERM and SIGHUP during the body: a few calls that belong together.

    They are delivered behind it. A mask would hold for one thread only: the system gives a signal
    to another one, and Python then runs its handler in the main thread. Outside the main thread
    nothing changes: no handler interrupts the body there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held_numbers: list[int] = []

    def hold_signal(number: int, _frame: FrameType | None) -> None:
        held_numbers.append(number)

    def deliver_signals() -> None:
        for held_number in dict.fromkeys(held_numbers):
            signal.raise_signal(held_number)

    with ExitStack() as at_end:
        at_end.callback(deliver_signals)
        for number in _BLOCKED_SIGNALS:
            handler = signal.getsignal(number)
            if handler not in {signal.SIG_IGN, None}:
                at_end.callback(signal.signal, number, handler)
                signal.signal(number, hold_signal)
        yield

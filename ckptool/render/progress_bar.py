"""ProgressBar: steps of a command, drawn by tqdm on standard error after one second."""

import os
import sys
import warnings
from collections.abc import Callable
from contextvars import Token
from functools import wraps
from threading import Event, Lock, Thread
from typing import Any, Final, Self, TypeVar

from ckptool.values.progress import LISTENER, ProgressListener

R = TypeVar("R")

_FIRST_DRAWN_SECONDS: Final = 1.0
_REDRAWN_SECONDS: Final = 0.2
_UNKNOWN_WIDTH: Final = 80
"""Columns of a terminal that says 0."""
_COUNTED: Final = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {rate_fmt}, {remaining} left"
)
_UNCOUNTED: Final = "{desc}: {elapsed}"
"""Without a number of bytes only the time can be shown."""


def is_notebook() -> bool:
    """Whether the interpreter is a notebook's; IPython is not imported to find out."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def with_progress_bar(function: Callable[..., R]) -> Callable[..., R]:
    """Return a function that shows its steps while it runs, as a notebook's reader wants it."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        with ProgressBar():
            return function(*args, **kwargs)

    return call


def can_draw() -> bool:
    """Whether standard error is a terminal that somebody looks at: no pipe, and not in CI."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return is_terminal and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def _measure_width() -> int | None:
    """Return the columns of the terminal; None lets tqdm find out."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _UNKNOWN_WIDTH
    except (OSError, ValueError, AttributeError):
        return None


class ProgressBar:
    """Context manager that draws the steps of the command in it, if that takes over a second.

    A thread redraws it, so that a step that counts nothing shows its time.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_over = Event()
        self._step = ("", 0)
        self._is_new_step = False
        self._done_nbytes = 0
        self._in_background = False
        self._bar: Any = None
        self._thread = Thread(target=self._draw_until_over, daemon=True)
        self._token: Token[ProgressListener | None] | None = None

    def __enter__(self) -> Self:
        self._token = LISTENER.set(self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._token is not None:
            LISTENER.reset(self._token)

    def start_step(self, text: str, total_nbytes: int, *, in_background: bool) -> None:
        with self._lock:
            if self._in_background and self._done_nbytes < self._step[1] and not total_nbytes:
                return
            self._in_background = in_background
            self._step, self._is_new_step, self._done_nbytes = (text, total_nbytes), True, 0

    def add_bytes(self, nbytes: int) -> None:
        with self._lock:
            self._done_nbytes += nbytes

    def clear(self) -> None:
        """Erase the bar, so that a line can be printed; it is drawn again with the next step."""
        with self._lock:
            if self._bar is not None:
                self._bar.clear()

    def close(self) -> None:
        """Erase the bar for good."""
        self._is_over.set()
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def _draw_until_over(self) -> None:
        seconds = _FIRST_DRAWN_SECONDS
        while not self._is_over.wait(seconds):
            seconds = _REDRAWN_SECONDS
            with self._lock:
                if not self._is_over.is_set():
                    self._draw()

    def _draw(self) -> None:
        text, total_nbytes = self._step
        if not text:
            return
        if self._bar is None or self._is_new_step:
            self._replace_bar(text, total_nbytes)
        if total_nbytes:
            self._bar.n = min(self._done_nbytes, total_nbytes)
        self._bar.refresh()

    def _replace_bar(self, text: str, total_nbytes: int) -> None:
        if self._bar is not None:
            self._bar.close()
        if is_notebook():
            with warnings.catch_warnings():  # without ipywidgets it draws a line of text
                warnings.simplefilter("ignore")
                from tqdm.auto import tqdm
        else:
            from tqdm.std import tqdm  # tqdm.auto imports asyncio

        tqdm.monitor_interval = 0  # the thread of this class redraws it
        self._bar = tqdm(
            desc=text,
            total=total_nbytes or None,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            initial=self._done_nbytes,
            smoothing=0,  # the rate since it was drawn
            leave=False,
            ncols=_measure_width(),
            nrows=2,  # a terminal may say 0, and nothing would be drawn
            bar_format=_COUNTED if total_nbytes else _UNCOUNTED,
            file=sys.stderr,
        )
        self._is_new_step = False

"""What a long command is at: announced where the work is done, and drawn by a listener."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, Protocol


class ProgressListener(Protocol):
    """Shows steps to a user; its methods are called from any thread."""

    def start_step(self, text: str, total_nbytes: int, *, in_background: bool) -> None: ...

    def add_bytes(self, nbytes: int) -> None: ...


LISTENER: Final[ContextVar[ProgressListener | None]] = ContextVar("LISTENER", default=None)
"""Listener of the running command; None where nobody looks."""


def start_step(text: str, total_nbytes: int = 0, *, in_background: bool = False) -> None:
    """Announce a step: "reading model.pth".

    Args:
        text: what is done, without its subject.
        total_nbytes: bytes that are going to be counted; 0 if none are.
        in_background: whether other steps are done meanwhile, in whose place it is shown.
    """
    listener = LISTENER.get()
    if listener is not None:
        listener.start_step(text, total_nbytes, in_background=in_background)


def get_byte_counter() -> Callable[[int], None]:
    """Return the function that counts bytes of the step, for threads: they have no context."""
    listener = LISTENER.get()
    return _ignore_bytes if listener is None else listener.add_bytes


def _ignore_bytes(nbytes: int) -> None:
    """Count nothing: nobody looks."""

"""Code that is not ours -> its result, or one exception that carries whatever it raised."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from ckptool.errors import Interrupted
from ckptool.modules.places import is_users, place

_SHOWN = 300


class UserCodeError(Exception):
    """What code of the user raised; the text is one line, the place included."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{said(error)}{_at(error)}")
        self.error = error


@contextmanager
def user_code() -> Iterator[None]:
    """Run importing, constructing, copying or moving a module: here anything may happen.

    What it prints goes to stderr, so that a report on stdout stays one.

    Raises:
        UserCodeError: it raised; SystemExit counts, what a signal raises passes through.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (KeyboardInterrupt, Interrupted):
        raise
    # The one broad except of this package: a constructor may raise anything, and whatever it is,
    # the person who named the module wants to read it in one line.
    except BaseException as error:
        raise UserCodeError(error) from error


def said(error: BaseException) -> str:
    """Return the type and the first line of the text of `error`."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    line = next((line.strip() for line in lines if line.strip()), type(error).__name__)
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."


def _at(error: BaseException) -> str:
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if is_users(frame.f_code.co_filename)
    ]
    return f" (at {place(*frames[-1])})" if frames else ""

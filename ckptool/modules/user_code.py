"""Run user code; wrap any exception in UserCodeError, redirect stdout to stderr."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from ckptool.errors import Interrupted
from ckptool.modules.assignment_locations import format_location, is_user_file
from ckptool.modules.world.user_world import user_world
from ckptool.phrases import summarize_message


class UserCodeError(Exception):
    """An exception raised by user code; the message is one line with "file:line"."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{format_exception_line(error)}{_format_user_location(error)}")
        self.error = error
        self.text = read_message(error)
        """What `str()` gives of it, "" if that raises."""


@contextmanager
def user_code() -> Iterator[None]:
    """Context for importing, constructing, copying or moving a module of the user.

    Redirects stdout to stderr, so that stdout contains only the report. What the code changes of
    the process is put back: see `user_world`.

    Raises:
        UserCodeError: the code raised, SystemExit included. KeyboardInterrupt and Interrupted pass.
    """
    try:
        with user_world(), redirect_stdout(sys.stderr):
            yield
    except (KeyboardInterrupt, Interrupted):
        raise
    # The one broad except of this package: a constructor may raise anything, and the report shows
    # it in one line.
    except BaseException as error:
        raise UserCodeError(error) from error


def read_message(error: BaseException) -> str:
    """Return the text of an exception, "" if its `__str__` raises."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 (it is user code as well)
        return ""


def format_exception_line(error: BaseException) -> str:
    """Format the type and the message of `error` in one line of about 300 characters."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}:{error.lineno})"
    text = "".join(traceback.format_exception_only(error))
    return summarize_message(text) or type(error).__name__


def _format_user_location(error: BaseException) -> str:
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if is_user_file(frame.f_code.co_filename)
    ]
    return f" (at {format_location(*frames[-1])})" if frames else ""

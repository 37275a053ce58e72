"""Progress bar and signal handling of long-running commands."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from ckptool.errors import Interrupted
from ckptool.render.progress_bar import ProgressBar, can_draw
from ckptool.values.progress import LISTENER


@contextmanager
def report_interrupt(ctx: click.Context) -> Iterator[None]:
    """Context manager of what writes files, and removes them where it does not complete them.

    On SIGINT or SIGTERM, print that as one line and exit with 128 + signal number.
    """
    try:
        yield
    except KeyboardInterrupt:
        name, code = "SIGINT", 130
    except Interrupted as signal:
        name, code = signal.name, int(str(signal.code))
    else:
        return
    close_progress()
    click.echo(f"ckptool: ended by {name}: incomplete output was removed", err=True)
    ctx.exit(code)


@contextmanager
def show_progress(*, is_wanted: bool) -> Iterator[None]:
    """Context manager: draw what takes over a second, on a terminal, if `is_wanted`."""
    if not (is_wanted and can_draw()):
        yield
        return
    with ProgressBar():
        yield


def echo_error(text: str) -> None:
    """Print a line on standard error, in the place of the progress bar if there is one."""
    listener = LISTENER.get()
    if isinstance(listener, ProgressBar):
        listener.clear()
    click.echo(text, err=True)


def close_progress() -> None:
    """Erase the progress bar of the running command for good: its report follows."""
    listener = LISTENER.get()
    if isinstance(listener, ProgressBar):
        listener.close()

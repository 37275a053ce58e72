"""Progress display and signal handling of long-running commands."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import click

from ckptool.errors import Interrupted
from ckptool.locations import Location, RemotePath
from ckptool.render.text import format_size


@contextmanager
def report_interrupt(ctx: click.Context, message: str = "") -> Iterator[None]:
    """Context manager: on SIGINT or SIGTERM, print one line and exit with 128 + signal number.

    `message` is appended to the line.
    """
    try:
        yield
    except KeyboardInterrupt:
        name, code = "SIGINT", 130
    except Interrupted as signal:
        name, code = signal.name, int(str(signal.code))
    else:
        return
    click.echo(f"ckptool: ended by {name}{': ' if message else ''}{message}", err=True)
    ctx.exit(code)


class ProgressLine:
    """One-line byte counter on a terminal's standard error, shown after one second."""

    def __init__(self, source: Location, verb: str) -> None:
        self._total_nbytes = sum(path.stat().st_size for path in _list_files(source))
        self._verb = verb
        self._start_time = self._last_shown_time = time.monotonic()
        self._done_nbytes = 0
        self._is_drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_drawn:
            click.echo("\r\x1b[K", nl=False, err=True)

    def add_bytes(self, nbytes: int) -> None:
        """Add to the count; redraw the line at most every 0.2 s."""
        self._done_nbytes += nbytes
        now = time.monotonic()
        if now - self._start_time > 1 and now - self._last_shown_time > 0.2 and sys.stderr.isatty():
            bytes_per_second = self._done_nbytes / (now - self._start_time)
            remaining_seconds = max(0, self._total_nbytes - self._done_nbytes) / max(
                bytes_per_second, 1
            )
            line = (
                f"{format_size(self._done_nbytes)} {self._verb},"
                f" {format_size(int(bytes_per_second))}/s"
            )
            line += f", about {remaining_seconds:.0f} s left" if self._total_nbytes else ""
            # Set before drawing: a signal may arrive between the two, and __exit__ must erase.
            self._last_shown_time, self._is_drawn = now, True
            click.echo(f"\r\x1b[K{line}", nl=False, err=True)


def _list_files(source: Location) -> list[Path]:
    """Return the files of a local checkpoint, [] for a remote or unreadable one."""
    if isinstance(source, RemotePath):
        return []
    try:
        paths = list(source.iterdir()) if source.is_dir() else [source]
        return [path for path in paths if path.is_file()]
    except OSError:
        return []  # opening the checkpoint reports the error

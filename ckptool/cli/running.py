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
from ckptool.render.text import size


@contextmanager
def ending(ctx: click.Context, said: str = "") -> Iterator[None]:
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
    click.echo(f"ckptool: ended by {name}{': ' if said else ''}{said}", err=True)
    ctx.exit(code)


class Progress:
    """One-line byte counter on a terminal's standard error, shown after one second."""

    def __init__(self, source: Location, verb: str) -> None:
        self._total = sum(path.stat().st_size for path in _files(source))
        self._verb = verb
        self._start = self._shown = time.monotonic()
        self._done = 0
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            click.echo("\r\x1b[K", nl=False, err=True)

    def add(self, nbytes: int) -> None:
        """Add to the count; redraw the line at most every 0.2 s."""
        self._done += nbytes
        now = time.monotonic()
        if now - self._start > 1 and now - self._shown > 0.2 and sys.stderr.isatty():
            rate = self._done / (now - self._start)
            left = max(0, self._total - self._done) / max(rate, 1)
            line = f"{size(self._done)} {self._verb}, {size(int(rate))}/s"
            line += f", about {left:.0f} s left" if self._total else ""
            # Set before drawing: a signal may arrive between the two, and __exit__ must erase.
            self._shown, self._drawn = now, True
            click.echo(f"\r\x1b[K{line}", nl=False, err=True)


def _files(source: Location) -> list[Path]:
    """Return the files of a local checkpoint, [] for a remote or unreadable one."""
    if isinstance(source, RemotePath):
        return []
    try:
        found = list(source.iterdir()) if source.is_dir() else [source]
        return [path for path in found if path.is_file()]
    except OSError:
        return []  # opening the checkpoint reports the error

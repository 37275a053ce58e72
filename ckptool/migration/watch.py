"""Detect source files that change while they are read."""

import os
from pathlib import Path

from ckptool.errors import ReadError, WriteError
from ckptool.locations import Location, RemotePath

_Mark = tuple[int, int, int, int]


class Watch:
    """Records device, inode, size and mtime of every source file before it is opened."""

    def __init__(self) -> None:
        self._marks: dict[Path, _Mark] = {}
        self._remote: dict[RemotePath, None] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        """Local files that are guarded."""
        return tuple(self._marks)

    def add(self, path: Location) -> None:
        """Record a file, or all files of a folder; missing files are ignored here.

        A remote file is compared with the state of its first request.

        Raises:
            ReadError: the folder cannot be listed.
        """
        if isinstance(path, RemotePath):
            self._remote[path] = None
            return
        try:
            found = [path] if not path.is_dir() else sorted(path.iterdir())
        except OSError as error:
            raise ReadError(path, error.strerror or str(error)) from error
        for file in found:
            mark = _mark(file)
            if mark is not None:
                self._marks.setdefault(file, mark)

    def check(self) -> None:
        """Raise if a recorded file has changed since it was recorded.

        Raises:
            WriteError: a local file was changed, replaced or removed.
            ReadError: a remote file was changed, or can no longer be reached.
        """
        for path, mark in self._marks.items():
            if _mark(path) != mark:
                raise WriteError(
                    f"{path}: was changed while it was read: nothing was written, run it again"
                )
        if self._remote:
            from ckptool.formats.remote import check, together

            together(check, list(self._remote))


def _mark(path: Path) -> _Mark | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - it also takes /dev/fd
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

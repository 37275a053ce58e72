"""Detect source files that change while they are read."""

import os
from pathlib import Path

from ckptool.errors import ReadError, WriteError
from ckptool.locations import Location, RemotePath

_FileIdentity = tuple[int, int, int, int]


class SourceGuard:
    """Records device, inode, size and mtime of every source file before it is opened."""

    def __init__(self) -> None:
        self._identities: dict[Path, _FileIdentity] = {}
        self._remote_files: dict[RemotePath, None] = {}

    @property
    def local_files(self) -> tuple[Path, ...]:
        """Local files that are guarded."""
        return tuple(self._identities)

    def add_path(self, path: Location) -> None:
        """Record a file, or all files of a folder; missing files are ignored here.

        A remote file is compared with the state of its first request.

        Raises:
            ReadError: the folder cannot be listed.
        """
        if isinstance(path, RemotePath):
            self._remote_files[path] = None
            return
        try:
            paths = [path] if not path.is_dir() else sorted(path.iterdir())
        except OSError as error:
            raise ReadError(path, error.strerror or str(error)) from error
        for file in paths:
            identity = _read_identity(file)
            if identity is not None:
                self._identities.setdefault(file, identity)

    def check_unchanged(self) -> None:
        """Raise if a recorded file has changed since it was recorded.

        Raises:
            WriteError: a local file was changed, replaced or removed.
            ReadError: a remote file was changed, or can no longer be reached.
        """
        for path, identity in self._identities.items():
            if _read_identity(path) != identity:
                raise WriteError(
                    f"{path}: was changed while it was read: nothing was written, run it again"
                )
        if self._remote_files:
            from ckptool.formats.files.remote import check_unchanged, map_concurrently

            map_concurrently(check_unchanged, list(self._remote_files))


def _read_identity(path: Path) -> _FileIdentity | None:
    try:
        stat_result = os.stat(path)  # noqa: PTH116 - it also takes /dev/fd
    except OSError:
        return None
    return stat_result.st_dev, stat_result.st_ino, stat_result.st_size, stat_result.st_mtime_ns

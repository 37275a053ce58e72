"""Detect source files that change while they are read."""

import os
from pathlib import Path

from ckptool.errors import ReadError, WriteError, describe_os_error
from ckptool.locations import Location, RemotePath

_FileIdentity = tuple[int, int, int, int, int, int]


class SourceGuard:
    """Records what the file system says of every source file before it is opened.

    That is device, inode, size, mtime and ctime. Whoever writes can set mtime back, and not ctime;
    so a write is found on every file system that keeps ctime.
    """

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
            raise ReadError(path, describe_os_error(error)) from error
        for file in paths:
            identity = _read_identity(file)
            if identity is not None:
                self._identities.setdefault(file, identity)

    def has_changed(self, path: Location) -> bool:
        """Whether a local file is not as it was recorded; False for one that was not recorded."""
        if isinstance(path, RemotePath) or path not in self._identities:
            return False
        return not _is_same_content(self._identities[path], _read_identity(path))

    def list_changed(self) -> list[Path]:
        """Return the local files that were changed, replaced or removed."""
        return [path for path in self._identities if self.has_changed(path)]

    def check_unchanged(self) -> None:
        """Raise if a recorded file has changed since it was recorded.

        Raises:
            WriteError: a local file was changed, replaced or removed.
            ReadError: a remote file was changed, or can no longer be reached.
        """
        for path in self.list_changed():
            raise WriteError(
                f"{path}: changed while it was read: nothing was written, run the command again"
            )
        if self._remote_files:
            from ckptool.formats.files.remote import check_unchanged, map_concurrently

            map_concurrently(check_unchanged, list(self._remote_files))


def _read_identity(path: Path) -> _FileIdentity | None:
    try:
        stat_result = os.stat(path)  # noqa: PTH116 - it also takes /dev/fd
    except OSError:
        return None
    return (
        stat_result.st_dev,
        stat_result.st_ino,
        stat_result.st_size,
        stat_result.st_mtime_ns,
        stat_result.st_nlink,
        stat_result.st_ctime_ns,
    )


def _is_same_content(old: _FileIdentity, new: _FileIdentity | None) -> bool:
    """Whether nobody wrote to the file; a new hard link, as of a shard that stays, sets ctime."""
    if new is None or old[:4] != new[:4]:
        return False
    return old[4:] == new[4:] or old[4] != new[4]

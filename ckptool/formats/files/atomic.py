"""Write a file or folder atomically: complete at its final name, or absent."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Final
from zlib import crc32

from ckptool.errors import WriteError, describe_os_error

_TEMPORARY_PREFIX: Final = ".ckptool-"
_NO_HARDLINK_ERRNOS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""errno values of file systems without hard links."""
_NO_EXCHANGE_ERRNOS: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""errno values of systems that cannot exchange two files."""
_RENAME_EXCHANGE: Final = 2
"""Flag RENAME_EXCHANGE of renameat2(2)."""
_AT_FDCWD: Final = -100
"""AT_FDCWD of openat(2): paths are relative to the working directory."""


class PendingOutput:
    """Temporary file or folder next to `target`, locked by its writer until it is moved there."""

    def __init__(self, path: Path, target: Path, descriptor: int, *, force: bool) -> None:
        self.path = path
        self.target = target
        self.descriptor = descriptor
        self.is_gathered = False
        """Whether an OutputGroup closes it, and not the context that opened it."""
        self._force = force
        self._replaced_descriptor = -1
        """Locked descriptor of what was replaced, -1 if there was nothing, or it is unreadable."""
        self._undo: Callable[[], object] = lambda: None

    def sync_to_disk(self) -> None:
        """Flush the content to disk (fsync).

        Raises:
            WriteError: the operating system failed to.
        """
        with translate_os_errors(self.target):
            os.fsync(self.descriptor)

    def move_to_target(self) -> None:
        """Move to `target` atomically; what it replaces is kept for `undo_move` until `close`.

        Raises:
            WriteError: it could not be moved, or something is there and may not be replaced.
        """
        with translate_os_errors(self.target):
            is_folder = stat.S_ISDIR(os.fstat(self.descriptor).st_mode)
            status = _stat_if_exists(self.target, follow=False)
            if status is not None and self._force:
                _check_kind(self.target, status, folder=is_folder)
                self._replace_target(can_link=not is_folder)
                return
            if status is not None:
                raise _explain_taken(self.target)
            move = _move_folder if is_folder else _move_new_file
            move(self.path, self.target)
            self._undo = partial(self.target.rename, self.path)

    def undo_move(self) -> None:
        """Undo `move_to_target`: restore what was there, or remove the new file or folder.

        Raises:
            WriteError: it could not be undone.
        """
        with translate_os_errors(self.target):
            self._undo()

    def close(self) -> None:
        """Remove what is at the temporary path, and unlock."""
        _remove_path(self.path)
        for descriptor in (self.descriptor, self._replaced_descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self._replaced_descriptor = -1

    def _replace_target(self, *, can_link: bool) -> None:
        """Replace the target; what was there is under a temporary name then, and locked.

        Without the lock, another command with this target would remove it.
        """
        self._replaced_descriptor = _lock_existing(self.target)
        try:
            _exchange_paths(self.path, self.target)
            self._undo = partial(_exchange_paths, self.path, self.target)
        except OSError as error:
            if error.errno not in _NO_EXCHANGE_ERRNOS or not can_link:
                raise
            kept_path = _name_temporary(self.target)
            with suppress(OSError):  # without hard links it is replaced, and that not undone
                kept_path.hardlink_to(self.target)
            self.path.replace(self.target)
            self.path = kept_path
            self._undo = partial(kept_path.replace, self.target)


class PendingRemoval:
    """File that is removed with the outputs of a command; until then it is at its path."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = _name_temporary(target)
        self.is_gathered = False

    def sync_to_disk(self) -> None:
        """Do nothing: no content is written."""

    def move_to_target(self) -> None:
        """Move the file, if there is one, to a temporary name, for `undo_move`.

        Raises:
            WriteError: it could not be moved.
        """
        with translate_os_errors(self.target), suppress(FileNotFoundError):
            self.target.rename(self.path)

    def undo_move(self) -> None:
        """Move the file back.

        Raises:
            WriteError: it could not be moved.
        """
        with translate_os_errors(self.target), suppress(FileNotFoundError):
            self.path.rename(self.target)

    def close(self) -> None:
        """Remove what is at the temporary path."""
        _remove_path(self.path)


def check_target(target: Path, inputs: Sequence[Path], *, force: bool, folder: bool) -> None:
    """Reject a target that is an input, exists already, or cannot be created, before any work.

    Raises:
        WriteError: the reason and the remedy, in one line.
    """
    with translate_os_errors(target):
        _check_not_input(target, inputs)
        status = _stat_if_exists(target, follow=False)
        if status is None:
            _check_parent(target)
            return
        _check_kind(target, status, folder=folder)
        if not force:
            raise WriteError(
                f"{target}: already exists: choose another name, or replace it with --force"
            )


@contextmanager
def open_pending_output(
    target: Path, *, force: bool, folder: bool = False
) -> Iterator[PendingOutput]:
    """Create a temporary file or folder next to `target`; remove it on exit unless it was moved.

    Temporaries of dead processes with the same target are removed first.

    Raises:
        WriteError: it cannot be created there.
    """
    with translate_os_errors(target):
        status = _stat_if_exists(target, follow=False)
        if status is not None:
            _check_kind(target, status, folder=folder)
        _remove_stale_temporaries(target)
    output = PendingOutput(_name_temporary(target), target, -1, force=force)
    try:
        with translate_os_errors(target):
            while output.descriptor < 0:
                output.path = _name_temporary(target)
                output.descriptor = _create_temporary(output.path, folder=folder)
        yield output
    finally:
        if not output.is_gathered:
            output.close()


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to disk (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def translate_os_errors(target: Path) -> Iterator[None]:
    """Context manager that converts OSError into a WriteError for `target`."""
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            _check_parent(target)
        reason = describe_os_error(error, target)
        raise WriteError(f"{target}: not written: {reason}") from error


def _stat_if_exists(path: Path, *, follow: bool = True) -> os.stat_result | None:
    try:
        return path.stat(follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _check_not_input(target: Path, inputs: Sequence[Path]) -> None:
    target_status = _stat_if_exists(target)
    for input_path in inputs if target_status else ():
        input_status = _stat_if_exists(input_path)
        if (
            input_status is not None
            and target_status is not None
            and os.path.samestat(target_status, input_status)
        ):
            raise WriteError(
                f"{target}: is {input_path} itself, which is never overwritten: choose another file"
            )


def _check_parent(target: Path) -> None:
    parent_status = _stat_if_exists(target.parent)
    if parent_status is None or not stat.S_ISDIR(parent_status.st_mode):
        raise WriteError(f"{target}: the folder {target.parent} does not exist: create it first")


def _check_kind(target: Path, status: os.stat_result, *, folder: bool) -> None:
    """Raise WriteError if what is at the target is not of the kind that would be written."""
    kind = _describe_kind(status.st_mode)
    requested_kind = "a folder" if folder else "a file"
    if kind != requested_kind:
        raise WriteError(
            f"{target}: is {kind}, and {requested_kind} would be written: choose another name"
        )


def _describe_kind(mode: int) -> str:
    """Return what a path is; a symbolic link is a file, which another file may replace."""
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        return "a file"
    names = {
        stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
    }  # fmt: skip
    return names.get(stat.S_IFMT(mode), "a device")


def _explain_taken(target: Path) -> WriteError:
    return WriteError(f"{target}: was created by another process in the meantime: it was kept")


def _name_temporary(target: Path) -> Path:
    return target.parent / f"{_build_temporary_prefix(target)}{os.urandom(4).hex()}"


def _build_temporary_prefix(target: Path) -> str:
    # A checksum instead of the name: a long name plus the prefix could exceed NAME_MAX.
    return f"{_TEMPORARY_PREFIX}{crc32(os.fsencode(target.name)):08x}-"


def _create_temporary(path: Path, *, folder: bool) -> int:
    """Return a locked descriptor of the new file or folder; -1 if a cleanup removed it."""
    if folder:
        path.mkdir(0o777)
        flags = os.O_RDONLY | os.O_DIRECTORY
    else:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        if folder and path.parent.is_dir():
            return -1
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = _stat_if_exists(path)
    except BlockingIOError:
        status = None
    if status is None or status.st_ino != os.fstat(descriptor).st_ino:
        os.close(descriptor)
        return -1
    return descriptor


def _remove_stale_temporaries(target: Path) -> None:
    """Remove temporaries of dead processes that wrote to `target`: those whose lock is free."""
    prefix = _build_temporary_prefix(target)
    with os.scandir(target.parent) as entries:
        candidates = [Path(entry.path) for entry in entries if entry.name.startswith(prefix)]
    for path in candidates:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path, flags)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_path(path)
        except BlockingIOError:
            pass  # its writer is still running
        finally:
            os.close(descriptor)


def _remove_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _lock_existing(path: Path) -> int:
    """Return a locked descriptor of a file or folder; -1 if it cannot be opened or locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _move_new_file(path: Path, target: Path) -> None:
    try:
        # Unlike rename, link never replaces a file that another process created meanwhile.
        target.hardlink_to(path)
        with suppress(OSError):  # a second name of it, which `close` removes
            path.unlink()
    except FileExistsError:
        raise _explain_taken(target) from None
    except OSError as error:
        if (
            error.errno not in _NO_HARDLINK_ERRNOS
            or _stat_if_exists(target, follow=False) is not None
        ):
            raise
        path.rename(target)


def _move_folder(path: Path, target: Path) -> None:
    try:
        path.rename(target)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            raise _explain_taken(target) from error
        raise


def _exchange_paths(path: Path, target: Path) -> None:
    """Atomically exchange two paths (renameat2 with RENAME_EXCHANGE).

    Raises:
        OSError: the file system does not support it, or the C library.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    path_bytes, target_bytes = os.fsencode(path), os.fsencode(target)
    try:
        failed = libc.renameat2(_AT_FDCWD, path_bytes, _AT_FDCWD, target_bytes, _RENAME_EXCHANGE)
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target)) from None
    if failed:
        error_code = ctypes.get_errno()
        raise OSError(error_code, os.strerror(error_code), str(target))

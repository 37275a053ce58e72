"""Write a file or folder atomically: complete at its final name, or absent."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Final
from zlib import crc32

from ckptool.errors import WriteError, describe_os_error
from ckptool.formats.files.signals import block_signals

_TEMPORARY_PREFIX: Final = ".ckptool-"
_NO_HARDLINK_ERRNOS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""errno values of file systems without hard links."""
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
        self._force = force
        self._is_exchanged = False

    def sync_to_disk(self) -> None:
        """Flush the content to disk (fsync).

        Raises:
            WriteError: the operating system failed to.
        """
        with translate_os_errors(self.target):
            os.fsync(self.descriptor)

    def move_to_target(self, *, undoable: bool = False) -> None:
        """Move to `target` atomically and flush the folder entry to disk.

        With `undoable`, a replaced file is kept under the temporary name for `undo_move`.
        """
        with translate_os_errors(self.target):
            if stat.S_ISDIR(os.fstat(self.descriptor).st_mode):
                _move_folder(self.path, self.target, force=self._force)
            elif undoable and self._force and _stat_if_exists(self.target, follow=False):
                _exchange_paths(self.path, self.target)
                self._is_exchanged = True
            else:
                _move_file(self.path, self.target, force=self._force)
            _sync_folder(self.target.parent)

    def undo_move(self) -> None:
        """Undo `move_to_target`: restore the previous file, or remove the new one."""
        with translate_os_errors(self.target):
            if self._is_exchanged:
                _exchange_paths(self.path, self.target)
            else:
                self.target.unlink()


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
        elif stat.S_ISDIR(status.st_mode) != folder:
            existing_kind, requested_kind = ("folder", "file") if not folder else ("file", "folder")
            raise WriteError(
                f"{target}: is a {existing_kind}, and a {requested_kind} would be written: choose "
                "another name"
            )
        elif not force:
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
        _remove_stale_temporaries(target)
    path, descriptor = target, -1
    try:
        with translate_os_errors(target):
            while descriptor < 0:
                path = target.parent / f"{_build_temporary_prefix(target)}{os.urandom(4).hex()}"
                descriptor = _create_temporary(path, folder=folder)
        yield PendingOutput(path, target, descriptor, force=force)
    finally:
        if path != target:
            _remove_path(path)
        if descriptor >= 0:
            os.close(descriptor)


def commit_outputs(*outputs: PendingOutput, check: Callable[[], None] = lambda: None) -> None:
    """Flush all outputs, call `check`, and move them to their targets in order, signals deferred.

    If a move fails, the moves before it are undone.

    Raises:
        WriteError: an output could not be moved; exceptions of `check` propagate.
    """
    for output in outputs:
        output.sync_to_disk()
    check()
    with block_signals(), ExitStack() as undo:
        for output in outputs:
            output.move_to_target(undoable=output is not outputs[-1])
            undo.callback(output.undo_move)
        undo.pop_all()


def write_file(path: Path, content: bytes, *, force: bool) -> None:
    """Write a small file atomically.

    Raises:
        WriteError: it could not be written; an existing file is left unchanged.
    """
    with open_pending_output(path, force=force) as file:
        with translate_os_errors(path):
            file.path.write_bytes(content)
        commit_outputs(file)


def _sync_folder(folder: Path) -> None:
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


def _move_file(path: Path, target: Path, *, force: bool) -> None:
    if force:
        path.replace(target)
        return
    try:
        # Unlike rename, link never replaces a file that another process created meanwhile.
        target.hardlink_to(path)
        path.unlink()
    except FileExistsError:
        raise WriteError(
            f"{target}: was created by another process in the meantime: it was kept"
        ) from None
    except OSError as error:
        if (
            error.errno not in _NO_HARDLINK_ERRNOS
            or _stat_if_exists(target, follow=False) is not None
        ):
            raise
        path.rename(target)


def _move_folder(path: Path, target: Path, *, force: bool) -> None:
    try:
        path.rename(target)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise
        if not force:
            raise WriteError(f"{target}: already exists: replace it with --force") from error
        _exchange_paths(path, target)


def _exchange_paths(path: Path, target: Path) -> None:
    """Atomically exchange two paths (renameat2 with RENAME_EXCHANGE).

    The old content is then removed under the temporary name.

    Raises:
        OSError: the file system does not support it.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    path_bytes, target_bytes = os.fsencode(path), os.fsencode(target)
    if libc.renameat2(_AT_FDCWD, path_bytes, _AT_FDCWD, target_bytes, _RENAME_EXCHANGE) != 0:
        error_code = ctypes.get_errno()
        raise OSError(error_code, os.strerror(error_code), str(target))

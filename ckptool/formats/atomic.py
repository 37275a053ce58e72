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

from ckptool.errors import WriteError
from ckptool.formats.interrupts import uninterrupted

_PREFIX: Final = ".ckptool-"
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""errno values of file systems without hard links."""
_EXCHANGE: Final = 2
"""Flag RENAME_EXCHANGE of renameat2(2)."""
_HERE: Final = -100
"""AT_FDCWD of openat(2): paths are relative to the working directory."""


class Pending:
    """Temporary file or folder next to `target`, locked by its writer until it is moved there."""

    def __init__(self, path: Path, target: Path, descriptor: int, *, force: bool) -> None:
        self.path = path
        self.target = target
        self.descriptor = descriptor
        self._force = force
        self._swapped = False

    def sync(self) -> None:
        """Flush the content to disk (fsync).

        Raises:
            WriteError: the operating system failed to.
        """
        with failing(self.target):
            os.fsync(self.descriptor)

    def place(self, *, undoable: bool = False) -> None:
        """Move to `target` atomically and flush the folder entry to disk.

        With `undoable`, a replaced file is kept under the temporary name for `undo_move`.
        """
        with failing(self.target):
            if stat.S_ISDIR(os.fstat(self.descriptor).st_mode):
                _place_folder(self.path, self.target, force=self._force)
            elif undoable and self._force and _status(self.target, follow=False):
                _exchange(self.path, self.target)
                self._swapped = True
            else:
                _place_file(self.path, self.target, force=self._force)
            sync_folder(self.target.parent)

    def take_back(self) -> None:
        """Undo `move_to_target`: restore the previous file, or remove the new one."""
        with failing(self.target):
            if self._swapped:
                _exchange(self.path, self.target)
            else:
                self.target.unlink()


def check_target(target: Path, inputs: Sequence[Path], *, force: bool, folder: bool) -> None:
    """Reject a target that is an input, exists already, or cannot be created, before any work.

    Raises:
        WriteError: the reason and the remedy, in one line.
    """
    with failing(target):
        _refuse_inputs(target, inputs)
        found = _status(target, follow=False)
        if found is None:
            _check_parent(target)
        elif stat.S_ISDIR(found.st_mode) != folder:
            is_, wanted = ("folder", "file") if not folder else ("file", "folder")
            raise WriteError(f"{target}: is a {is_}, and a {wanted} is to be written: name another")
        elif not force:
            raise WriteError(f"{target}: exists already: name another, or replace it with --force")


@contextmanager
def pending(target: Path, *, force: bool, folder: bool = False) -> Iterator[Pending]:
    """Create a temporary file or folder next to `target`; remove it on exit unless it was moved.

    Temporaries of dead processes with the same target are removed first.

    Raises:
        WriteError: it cannot be created there.
    """
    with failing(target):
        _remove_stale(target)
    path, descriptor = target, -1
    try:
        with failing(target):
            while descriptor < 0:
                path = target.parent / f"{_prefix(target)}{os.urandom(4).hex()}"
                descriptor = _create(path, folder=folder)
        yield Pending(path, target, descriptor, force=force)
    finally:
        if path != target:
            _remove(path)
        if descriptor >= 0:
            os.close(descriptor)


def commit(*outputs: Pending, check: Callable[[], None] = lambda: None) -> None:
    """Flush all outputs, call `check`, and move them to their targets in order, signals deferred.

    If a move fails, the moves before it are undone.

    Raises:
        WriteError: an output could not be moved; exceptions of `check` propagate.
    """
    for output in outputs:
        output.sync()
    check()
    with uninterrupted(), ExitStack() as undo:
        for output in outputs:
            output.place(undoable=output is not outputs[-1])
            undo.callback(output.take_back)
        undo.pop_all()


def write_file(path: Path, content: bytes, *, force: bool) -> None:
    """Write a small file atomically.

    Raises:
        WriteError: it could not be written; an existing file is left unchanged.
    """
    with pending(path, force=force) as file:
        with failing(path):
            file.path.write_bytes(content)
        commit(file)


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to disk (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def failing(target: Path) -> Iterator[None]:
    """Context manager that converts OSError into a WriteError for `target`."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise WriteError(f"{target}: not written: {why}") from error


def _status(path: Path, *, follow: bool = True) -> os.stat_result | None:
    try:
        return path.stat(follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _refuse_inputs(target: Path, inputs: Sequence[Path]) -> None:
    found = _status(target)
    for path in inputs if found else ():
        source = _status(path)
        if source is not None and found is not None and os.path.samestat(found, source):
            raise WriteError(f"{target}: is {path} itself, which is never written to: name another")


def _check_parent(target: Path) -> None:
    parent = _status(target.parent)
    if parent is None or not stat.S_ISDIR(parent.st_mode):
        raise WriteError(f"{target}: there is no folder {target.parent}: make it first")


def _prefix(target: Path) -> str:
    # A checksum instead of the name: a long name plus the prefix could exceed NAME_MAX.
    return f"{_PREFIX}{crc32(os.fsencode(target.name)):08x}-"


def _create(path: Path, *, folder: bool) -> int:
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
        found = _status(path)
    except BlockingIOError:
        found = None
    if found is None or found.st_ino != os.fstat(descriptor).st_ino:
        os.close(descriptor)
        return -1
    return descriptor


def _remove_stale(target: Path) -> None:
    """Remove temporaries of dead processes that wrote to `target`: those whose lock is free."""
    prefix = _prefix(target)
    with os.scandir(target.parent) as entries:
        found = [Path(entry.path) for entry in entries if entry.name.startswith(prefix)]
    for path in found:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path, flags)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        except BlockingIOError:
            pass  # its writer is still running
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _place_file(path: Path, target: Path, *, force: bool) -> None:
    if force:
        path.replace(target)
        return
    try:
        # Unlike rename, link never replaces a file that another process created meanwhile.
        target.hardlink_to(path)
        path.unlink()
    except FileExistsError:
        raise WriteError(f"{target}: was written by somebody else meanwhile: it is kept") from None
    except OSError as error:
        if error.errno not in _NO_LINKS or _status(target, follow=False) is not None:
            raise
        path.rename(target)


def _place_folder(path: Path, target: Path, *, force: bool) -> None:
    try:
        path.rename(target)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
            raise
        if not force:
            raise WriteError(f"{target}: exists already: replace it with --force") from error
        _exchange(path, target)


def _exchange(path: Path, target: Path) -> None:
    """Atomically exchange two paths (renameat2 with RENAME_EXCHANGE).

    The old content is then removed under the temporary name.

    Raises:
        OSError: the file system does not support it.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(path), os.fsencode(target)
    if libc.renameat2(_HERE, old, _HERE, new, _EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))

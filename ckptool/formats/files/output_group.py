"""Pending outputs -> their targets: all that one command writes, or nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Final, Self, TypeVar

from ckptool.errors import WriteError, describe_os_error
from ckptool.formats.files.atomic import (
    PendingOutput,
    PendingRemoval,
    check_target,
    open_pending_output,
    sync_folder,
    translate_os_errors,
)
from ckptool.formats.files.signals import block_signals

PendingChange = PendingOutput | PendingRemoval
T = TypeVar("T")


class OutputGroup:
    """Complete outputs of a command that wait for those that it still writes."""

    def __init__(self, outer: Self | None) -> None:
        self._outer = outer
        """The group around this one, which gets its outputs; None for none."""
        self._outputs: list[PendingChange] = []
        self._checks: list[Callable[[], None]] = []
        self._at_end = ExitStack()
        """What is undone or unlocked once the outputs are moved or removed."""

    def add(self, outputs: Sequence[PendingChange], check: Callable[[], None]) -> None:
        """Take over complete outputs: the group moves or removes them from now on."""
        for output in outputs:
            output.is_gathered = True
        # A plan and a report describe the checkpoint that was written before: its name comes last.
        self._outputs[:0] = outputs
        self._checks.append(check)

    def commit(self) -> None:
        """Move the outputs to their targets, or hand them to the group around this one.

        Raises:
            WriteError: one could not be moved; then none is. Exceptions of the checks propagate.
        """
        if self._outer is not None:
            self._outer.add(self._outputs, _join_checks(self._checks))
            self._outer.hold(self._at_end.pop_all())
            self._outputs, self._checks = [], []
            return
        try:
            _move_outputs(self._outputs, _join_checks(self._checks))
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what was not moved."""
        for output in self._outputs:
            output.close()
        self._outputs, self._checks = [], []
        self._at_end.close()

    def hold(self, context: AbstractContextManager[T]) -> T:
        """Enter a context that is left once the outputs are moved or removed; return its value."""
        return self._at_end.enter_context(context)

    def create_folder(self, folder: Path) -> None:
        """Create a folder and those above it; what is empty at the end is removed again.

        Raises:
            WriteError: it cannot be created.
        """
        for path in reversed((folder, *folder.parents)):
            if not path.exists():
                self._at_end.callback(_remove_empty, path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"{folder}: {describe_os_error(error)}") from error

    def find_path(self, target: Path) -> Path:
        """Return the path of the content of `target` now: a temporary one while it waits."""
        return next((output.path for output in self._outputs if output.target == target), target)


_GROUP: Final = ContextVar[OutputGroup | None]("output group", default=None)


@contextmanager
def gather_outputs() -> Iterator[OutputGroup]:
    """Context manager: what is written in it appears at its end, all together, or not at all."""
    group = OutputGroup(_GROUP.get())
    token = _GROUP.set(group)
    try:
        yield group
        group.commit()
    finally:
        group.discard()
        _GROUP.reset(token)


@contextmanager
def write_separately() -> Iterator[None]:
    """Context manager: what is written in it appears at once, whatever the command still writes."""
    token = _GROUP.set(None)
    try:
        yield
    finally:
        _GROUP.reset(token)


@contextmanager
def keep_until_moved(context: AbstractContextManager[T]) -> Iterator[T]:
    """Context manager: enter `context`, and leave it once what is written in it has appeared."""
    group = _GROUP.get()
    if group is not None:
        yield group.hold(context)
        return
    with context as value:
        yield value


def commit_gathered() -> None:
    """Move all that the command has written to its targets now.

    Raises:
        WriteError: one could not be moved; then none is.
    """
    group = _GROUP.get()
    if group is not None:
        group.commit()


def find_written_path(target: Path) -> Path:
    """Return the path of what was written to `target`: a temporary one while it waits."""
    group = _GROUP.get()
    return target if group is None else group.find_path(target)


def commit_outputs(*outputs: PendingChange, check: Callable[[], None] = lambda: None) -> None:
    """Flush all outputs, call `check`, and move them to their targets in order, signals deferred.

    Within `gather_outputs` they wait for the other outputs, and `check` is called then. If a move
    fails, the moves before it are undone.

    Raises:
        WriteError: an output could not be moved; exceptions of `check` propagate.
    """
    for output in outputs:
        output.sync_to_disk()
    group = _GROUP.get()
    if group is None:
        _move_outputs(outputs, check)
    else:
        group.add(outputs, check)


def write_files(
    contents: Mapping[Path, bytes], *, force: bool, removed: Iterable[Path] = ()
) -> None:
    """Write small files atomically, and remove others: all, or none.

    Raises:
        WriteError: one exists already and `force` is not given, or cannot be written or removed.
    """
    for path in contents:
        check_target(path, (), force=force, folder=False)
    with ExitStack() as stack:
        outputs: list[PendingChange] = []
        for path, content in contents.items():
            output = stack.enter_context(open_pending_output(path, force=force))
            with translate_os_errors(path):
                output.path.write_bytes(content)
            outputs.append(output)
        commit_outputs(*outputs, *map(PendingRemoval, removed))


def write_file(path: Path, content: bytes, *, force: bool) -> None:
    """Write a small file atomically.

    Raises:
        WriteError: it could not be written; an existing file is left unchanged.
    """
    write_files({path: content}, force=force)


def _join_checks(checks: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def run_checks() -> None:
        for check in checks:
            check()

    return run_checks


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _move_outputs(outputs: Sequence[PendingChange], check: Callable[[], None]) -> None:
    check()
    with block_signals(), ExitStack() as undo:
        for output in outputs:
            output.move_to_target()
            undo.callback(output.undo_move)
        for folder, output in {output.target.parent: output for output in outputs}.items():
            with translate_os_errors(output.target):
                sync_folder(folder)
        undo.pop_all()

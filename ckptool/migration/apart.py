"""The same copying in a process of its own: importing torch leaves threads beside it no time."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, TYPE_CHECKING, Final, NoReturn

from msgspec import DecodeError, Struct
from msgspec.json import Decoder, decode, encode

from ckptool.errors import CkptoolError, CorruptCheckpointError, ReadError, WriteError
from ckptool.formats.atomic import Pending
from ckptool.formats.blobs import Progress
from ckptool.formats.files import Source, open_source
from ckptool.formats.interrupts import uninterrupted
from ckptool.migration.copying import Copying, Run

if TYPE_CHECKING:
    from subprocess import Popen

_BEGIN: Final = (
    "import sys; sys.path[:] = sys.argv[1:]; from ckptool.migration.apart import main; main()"
)
_PYTHONS: Final = ("python", "pypy")
"""Names of interpreters: in a program that was frozen, or embeds one, another is the executable."""
_LOOK: Final = 0.05
"""Seconds between two looks at whether the process that wants the copy is still there."""
_TELL: Final = 0.02
"""Seconds that results wait for others: each message takes the other process time."""
_PATIENCE: Final = 0.1


class _File(Struct, frozen=True):
    path: bytes
    descriptor: int
    nbytes: int


class _Job(Struct, frozen=True):
    parent: int
    target: bytes
    descriptor: int
    files: list[_File]
    runs: Sequence[Run]
    recorded: bool


class _Fault(Struct, frozen=True):
    """An error, for another process: paths need not be text."""

    name: str
    words: list[bytes]


class _Told(Struct, frozen=True):
    """What was done since the last time: bytes, and of which runs."""

    copied: int
    done: list[tuple[int, str | _Fault]]


class Apart:
    """The side of the process that wants the copy, and may end it at any time.

    The other one has the temporary file through a descriptor of its own, without the lock: where
    this process is killed, the lock is gone with it, whenever the other one notices.
    """

    def __init__(self, process: "Popen[bytes]", job: _Job, progress: Progress) -> None:
        self.done: list[Future[str]] = [Future() for _ in job.runs]
        self._process = process
        self._thread = Thread(target=self._listen, args=(job, progress), daemon=True)

    def listen(self) -> None:
        """Hand the work over, and begin to hear of it."""
        self._thread.start()

    def first(self, wanted: int) -> int:
        """Return how many of the first `wanted` runs are where they should be.

        All of them, unless the other process was killed. Nothing is written any more once this
        returns.

        Raises:
            WriteError: one could not be written, or read back.
            ReadError: a source cannot be read any more.
        """
        kept = 0
        with suppress(CancelledError):
            for done in self.done[:wanted]:
                done.result()
                kept += 1
        self.end()
        return kept

    def end(self) -> None:
        """Kill the other process, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        if self._thread.ident is not None:
            self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe and pipe.close()

    def _listen(self, job: _Job, progress: Progress) -> None:
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        decoder = Decoder(_Told)
        try:
            with to:
                to.write(encode(job))
            for line in back:
                told = decoder.decode(line)
                progress(told.copied)
                for number, found in told.done:
                    if isinstance(found, str):
                        self.done[number].set_result(found)
                    else:
                        self.done[number].set_exception(_error(found))
        except (OSError, DecodeError):
            pass  # it is dead, and what it had not done is done here
        finally:
            for done in self.done:
                done.cancel()


@contextmanager
def apart(
    paths: Sequence[Path], runs: Sequence[Run], out: Pending, progress: Progress, *, recorded: bool
) -> Iterator[Apart | None]:
    """Copy `runs` of the files `paths` to `out` in another process; it ends with the body.

    Gives None where no process can be started.

    Raises:
        ReadError: a file cannot be opened any more.
    """
    with ExitStack() as stack:
        with ExitStack() as lent:
            sources = [lent.enter_context(open_source(path)) for path in paths]
            copier = None
            # It inherits that signals wait, for as long as it lives: they are for this process.
            with uninterrupted(), suppress(OSError):
                descriptor = os.open(out.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                lent.callback(os.close, descriptor)
                files = [_File(os.fsencode(str(s.path)), s.fileno(), s.nbytes) for s in sources]
                target = os.fsencode(out.target)
                job = _Job(os.getpid(), target, descriptor, files, runs, recorded)
                if os.path.samestat(os.fstat(descriptor), os.fstat(out.descriptor)):
                    copier = _started(job, progress)
                if copier:
                    stack.callback(copier.end)
        if copier:
            copier.listen()
        yield copier


def _started(job: _Job, progress: Progress) -> Apart | None:
    """Start this interpreter with little: its paths are known, and no site is needed."""
    from subprocess import DEVNULL, PIPE, Popen

    executable = sys.executable or ""
    if not os.path.basename(executable).startswith(_PYTHONS):  # noqa: PTH119
        return None
    command = [executable, "-S", "-P", "-B", "-c", _BEGIN, *sys.path]
    given = (job.descriptor, *(file.descriptor for file in job.files))
    process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, pass_fds=given)  # noqa: S603
    return Apart(process, job, progress)


def _error(fault: _Fault) -> CkptoolError:
    words = [os.fsdecode(word) for word in fault.words]
    for kind in (ReadError, CorruptCheckpointError):
        if fault.name == kind.__name__:
            return kind(Path(words[0]), words[1])
    return WriteError(words[0])


def _fault(error: CkptoolError) -> _Fault:
    words = [str(error)]
    if isinstance(error, ReadError):
        words = [str(error.path), error.reason]
    return _Fault(type(error).__name__, [os.fsencode(word) for word in words])


def main() -> NoReturn:
    """Do a job that standard input gives, and tell of it on standard output."""
    code = 1
    try:
        job = decode(sys.stdin.buffer.read(), type=_Job)
        Thread(target=_leave_with, args=(job.parent,), daemon=True).start()
        _work(job, sys.stdout.buffer)
        code = 0
    finally:
        os._exit(code)


def _leave_with(parent: int) -> NoReturn:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def _work(job: _Job, to: IO[bytes]) -> None:
    copied = told = 0

    def count(nbytes: int) -> None:
        nonlocal copied
        copied += nbytes

    files = [Source(Path(os.fsdecode(f.path)), f.descriptor, f.nbytes) for f in job.files]
    target = Path(os.fsdecode(job.target))
    copying = Copying(files.__getitem__, job.descriptor, target, count)
    copying.start(job.runs, recorded=job.recorded)
    finished: SimpleQueue[int] = SimpleQueue()
    for number, done in enumerate(copying.done):
        done.add_done_callback(_teller(finished, number))
    left = len(copying.done)
    while left:
        some = _some(finished, left)
        left -= len(some)
        now = copied
        found = [(number, _found(copying.done[number])) for number in some]
        to.write(encode(_Told(now - told, found)) + b"\n")
        to.flush()
        told = now


def _teller(finished: SimpleQueue[int], number: int) -> Callable[[object], None]:
    return lambda _: finished.put(number)


def _some(finished: SimpleQueue[int], left: int) -> list[int]:
    """Return runs that are finished: those of a moment together, or none for a while."""
    try:
        found = [finished.get(timeout=_PATIENCE)]
    except Empty:
        return []
    if finished.qsize() + 1 < left:
        time.sleep(_TELL)
    while not finished.empty():
        found.append(finished.get())
    return found


def _found(done: Future[str]) -> str | _Fault:
    error = done.exception()
    if error is None:
        return done.result()
    if isinstance(error, CkptoolError):
        return _fault(error)
    raise error

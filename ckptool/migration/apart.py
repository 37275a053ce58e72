"""Copy in a child process: the import of torch holds the GIL, so threads would starve."""

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
"""Prefixes of interpreter names; frozen or embedding programs have another sys.executable."""
_LOOK: Final = 0.05
"""Poll interval for the exit of the parent process, in seconds."""
_TELL: Final = 0.02
"""Delay in seconds to batch results: each message costs the parent time."""
_PATIENCE: Final = 0.1
"""Timeout in seconds for the next result; progress is sent then."""


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
    """A serialized CkptoolError: paths are bytes, since they may not be valid text."""

    name: str
    words: list[bytes]


class _Told(Struct, frozen=True):
    """Progress message: bytes copied, and the ranges finished since the last message."""

    copied: int
    done: list[tuple[int, str | _Fault]]


class Apart:
    """Parent's handle of the child process that copies; it may be stopped at any time.

    The child has the temporary file through a descriptor of its own, without the lock: if the
    parent is killed, the lock is released at once, even if the child still runs.
    """

    def __init__(self, process: "Popen[bytes]", job: _Job, progress: Progress) -> None:
        self.done: list[Future[str]] = [Future() for _ in job.runs]
        self._process = process
        self._thread = Thread(target=self._listen, args=(job, progress), daemon=True)

    def listen(self) -> None:
        """Start the reader thread: send the job, receive progress and results."""
        self._thread.start()

    def first(self, wanted: int) -> int:
        """Wait for the first `count` ranges, stop the rest, and return how many were copied.

        Fewer than `count` only if the child was killed. Nothing is written after this returns.

        Raises:
            WriteError: a range could not be written, or read back.
            ReadError: a source can no longer be read.
        """
        kept = 0
        with suppress(CancelledError):
            for done in self.done[:wanted]:
                done.result()
                kept += 1
        self.end()
        return kept

    def end(self) -> None:
        """Kill the child process, wait for it, and close its pipes."""
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
            pass  # the child is dead; this process copies the ranges that have no result
        finally:
            for done in self.done:
                done.cancel()


@contextmanager
def apart(
    paths: Sequence[Path], runs: Sequence[Run], out: Pending, progress: Progress, *, recorded: bool
) -> Iterator[Apart | None]:
    """Copy `ranges` of the files `paths` to `output` in a child process, killed on exit.

    Yields None if no process can be started.

    Raises:
        ReadError: a file can no longer be opened.
    """
    with ExitStack() as stack:
        with ExitStack() as lent:
            sources = [lent.enter_context(open_source(path)) for path in paths]
            copier = None
            # The child inherits the blocked signals for its lifetime: only the parent handles them.
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
    """Start a minimal interpreter (-S -P, with our sys.path); None if there is no executable."""
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
    """Entry point of the child: read a job from stdin, write progress messages to stdout."""
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
    """Return the indices of finished ranges, batched; empty after `_RESULT_TIMEOUT`."""
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

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
from ckptool.formats.files.atomic import PendingOutput
from ckptool.formats.files.signals import block_signals
from ckptool.formats.files.source import ByteSource, open_source
from ckptool.formats.files.writer import ProgressCallback
from ckptool.migration.write.copy_threads import CopyRange, CopyThreads

if TYPE_CHECKING:
    from subprocess import Popen

_CHILD_CODE: Final = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import main; main()"
_INTERPRETER_NAMES: Final = ("python", "pypy")
"""Prefixes of interpreter names; frozen or embedding programs have another sys.executable."""
_PARENT_POLL_INTERVAL: Final = 0.05
"""Poll interval for the exit of the parent process, in seconds."""
_BATCH_DELAY: Final = 0.02
"""Delay in seconds to batch results: each message costs the parent time."""
_RESULT_TIMEOUT: Final = 0.1
"""Timeout in seconds for the next result; progress is sent then."""


class _CopySource(Struct, frozen=True):
    path: bytes
    descriptor: int
    nbytes: int


class _CopyJob(Struct, frozen=True):
    parent: int
    target: bytes
    descriptor: int
    files: list[_CopySource]
    runs: Sequence[CopyRange]
    recorded: bool


class _EncodedError(Struct, frozen=True):
    """A serialized CkptoolError: paths are bytes, since they may not be valid text."""

    name: str
    words: list[bytes]


class _CopyProgress(Struct, frozen=True):
    """Progress message: bytes copied, and the ranges finished since the last message."""

    copied: int
    done: list[tuple[int, str | _EncodedError]]


class CopyProcess:
    """Parent's handle of the child process that copies; it may be stopped at any time.

    The child has the temporary file through a descriptor of its own, without the lock: if the
    parent is killed, the lock is released at once, even if the child still runs.
    """

    def __init__(self, process: "Popen[bytes]", job: _CopyJob, progress: ProgressCallback) -> None:
        self.futures: list[Future[str]] = [Future() for _ in job.runs]
        self._process = process
        self._thread = Thread(target=self._read_results, args=(job, progress), daemon=True)

    def start_listener(self) -> None:
        """Start the reader thread: send the job, receive progress and results."""
        self._thread.start()

    def finish_first(self, count: int) -> int:
        """Wait for the first `count` ranges, stop the rest, and return how many were copied.

        Fewer than `count` only if the child was killed. Nothing is written after this returns.

        Raises:
            WriteError: a range could not be written, or read back.
            ReadError: a source can no longer be read.
        """
        kept_count = 0
        with suppress(CancelledError):
            for future in self.futures[:count]:
                future.result()
                kept_count += 1
        self.stop_copying()
        return kept_count

    def stop_copying(self) -> None:
        """Kill the child process, wait for it, and close its pipes."""
        self._process.kill()
        self._process.wait()
        if self._thread.ident is not None:
            self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                pipe and pipe.close()

    def _read_results(self, job: _CopyJob, progress: ProgressCallback) -> None:
        child_stdin, child_stdout = self._process.stdin, self._process.stdout
        assert child_stdin is not None
        assert child_stdout is not None
        decoder = Decoder(_CopyProgress)
        try:
            with child_stdin:
                child_stdin.write(encode(job))
            for line in child_stdout:
                message = decoder.decode(line)
                progress(message.copied)
                for index, result in message.done:
                    if isinstance(result, str):
                        self.futures[index].set_result(result)
                    else:
                        self.futures[index].set_exception(_restore_error(result))
        except (OSError, DecodeError):
            pass  # the child is dead; this process copies the ranges that have no result
        finally:
            for future in self.futures:
                future.cancel()


@contextmanager
def copy_in_process(
    paths: Sequence[Path],
    ranges: Sequence[CopyRange],
    output: PendingOutput,
    progress: ProgressCallback,
    *,
    with_fingerprints: bool,
) -> Iterator[CopyProcess | None]:
    """Copy `ranges` of the files `paths` to `output` in a child process, killed on exit.

    Yields None if no process can be started.

    Raises:
        ReadError: a file can no longer be opened.
    """
    with ExitStack() as stack:
        with ExitStack() as descriptor_stack:
            sources = [descriptor_stack.enter_context(open_source(path)) for path in paths]
            copier = None
            # The child inherits the blocked signals for its lifetime: only the parent handles them.
            with block_signals(), suppress(OSError):
                descriptor = os.open(output.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                descriptor_stack.callback(os.close, descriptor)
                files = [
                    _CopySource(os.fsencode(str(source.path)), source.fileno(), source.nbytes)
                    for source in sources
                ]
                target = os.fsencode(output.target)
                job = _CopyJob(os.getpid(), target, descriptor, files, ranges, with_fingerprints)
                if os.path.samestat(os.fstat(descriptor), os.fstat(output.descriptor)):
                    copier = _start_process(job, progress)
                if copier:
                    stack.callback(copier.stop_copying)
        if copier:
            copier.start_listener()
        yield copier


def _start_process(job: _CopyJob, progress: ProgressCallback) -> CopyProcess | None:
    """Start a minimal interpreter (-S -P, with our sys.path); None if there is no executable."""
    from subprocess import DEVNULL, PIPE, Popen

    executable = sys.executable or ""
    if not os.path.basename(executable).startswith(_INTERPRETER_NAMES):  # noqa: PTH119
        return None
    command = [executable, "-S", "-P", "-B", "-c", _CHILD_CODE, *sys.path]
    inherited_descriptors = (job.descriptor, *(file.descriptor for file in job.files))
    process = Popen(  # noqa: S603 (this interpreter, with our own code)
        command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, pass_fds=inherited_descriptors
    )
    return CopyProcess(process, job, progress)


def _restore_error(encoded_error: _EncodedError) -> CkptoolError:
    arguments = [os.fsdecode(argument) for argument in encoded_error.words]
    for error_type in (ReadError, CorruptCheckpointError):
        if encoded_error.name == error_type.__name__:
            return error_type(Path(arguments[0]), arguments[1])
    return WriteError(arguments[0])


def _encode_error(error: CkptoolError) -> _EncodedError:
    arguments = [str(error)]
    if isinstance(error, ReadError):
        arguments = [str(error.path), error.reason]
    return _EncodedError(type(error).__name__, [os.fsencode(argument) for argument in arguments])


def main() -> NoReturn:
    """Entry point of the child: read a job from stdin, write progress messages to stdout."""
    code = 1
    try:
        job = decode(sys.stdin.buffer.read(), type=_CopyJob)
        Thread(target=_exit_with_parent, args=(job.parent,), daemon=True).start()
        _run_job(job, sys.stdout.buffer)
        code = 0
    finally:
        os._exit(code)


def _exit_with_parent(parent: int) -> NoReturn:
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_INTERVAL)
    os._exit(1)


def _run_job(job: _CopyJob, output: IO[bytes]) -> None:
    copied_nbytes = reported_nbytes = 0

    def count_bytes(nbytes: int) -> None:
        nonlocal copied_nbytes
        copied_nbytes += nbytes

    files = [
        ByteSource(Path(os.fsdecode(file.path)), file.descriptor, file.nbytes) for file in job.files
    ]
    target = Path(os.fsdecode(job.target))
    copier = CopyThreads(files.__getitem__, job.descriptor, target, count_bytes)
    copier.submit_ranges(job.runs, with_fingerprints=job.recorded)
    finished_indices: SimpleQueue[int] = SimpleQueue()
    for index, future in enumerate(copier.futures):
        future.add_done_callback(_make_callback(finished_indices, index))
    remaining = len(copier.futures)
    while remaining:
        indices = _take_finished(finished_indices, remaining)
        remaining -= len(indices)
        current_nbytes = copied_nbytes
        results = [(index, _encode_result(copier.futures[index])) for index in indices]
        output.write(encode(_CopyProgress(current_nbytes - reported_nbytes, results)) + b"\n")
        output.flush()
        reported_nbytes = current_nbytes


def _make_callback(finished_indices: SimpleQueue[int], index: int) -> Callable[[object], None]:
    return lambda _: finished_indices.put(index)


def _take_finished(finished_indices: SimpleQueue[int], remaining: int) -> list[int]:
    """Return the indices of finished ranges, batched; empty after `_RESULT_TIMEOUT`."""
    try:
        indices = [finished_indices.get(timeout=_RESULT_TIMEOUT)]
    except Empty:
        return []
    if finished_indices.qsize() + 1 < remaining:
        time.sleep(_BATCH_DELAY)
    while not finished_indices.empty():
        indices.append(finished_indices.get())
    return indices


def _encode_result(future: Future[str]) -> str | _EncodedError:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, CkptoolError):
        return _encode_error(error)
    raise error

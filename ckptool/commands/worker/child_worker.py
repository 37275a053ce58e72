"""ModuleRequest -> its answer, from a child process that runs the user's code."""

import os
import pickle
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread, Timer
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar, cast

from msgspec import DecodeError

from ckptool.commands.worker.interpreter import start_interpreter, take_interpreter
from ckptool.commands.worker.messages import (
    MAX_ANSWER_NBYTES,
    Announcement,
    Answer,
    ChildSetup,
    Failure,
    Message,
    NamespaceNotice,
    Notice,
    WarningNotice,
    decode_answer,
    decode_message,
    read_frames,
    restore_error,
    write_frame,
)
from ckptool.commands.worker.requests import ModuleRequest
from ckptool.commands.worker.user_output import UserOutput
from ckptool.config import TRUST_RULE
from ckptool.errors import ModuleError, UsageError
from ckptool.formats.files.shared_descriptors import SHARED_DESCRIPTORS
from ckptool.values.progress import start_step

if TYPE_CHECKING:
    from subprocess import Popen

A = TypeVar("A")

_POLL_INTERVAL: Final = 0.1
"""Seconds after which a process that says nothing is looked at."""
_LAST_WORDS: Final = 1.0
"""Seconds in which a process whose pipe has ended may end, and in which its output is read."""


class ChildTraceback(Exception):  # noqa: N818 (shown as the cause of an error)
    """The traceback of an error in the child process."""


class ChildProcessWorker:
    """Runs user code in one child process, kept for the whole command.

    A process that ends or is ended is an error of the request that it was at; the next request
    starts another.
    """

    def __init__(
        self,
        timeout: float,
        show_lines: Callable[[Sequence[str]], None],
        place: "ProcessPlace | None" = None,
    ) -> None:
        """Create the worker; no process is started.

        Args:
            timeout: seconds that one request may take.
            show_lines: shows the lines that user code printed.
            place: where the process runs; None for where the command runs.
        """
        self._timeout = timeout
        self._show_lines = show_lines
        self._place = place
        self._output = UserOutput(show_lines)
        self._process: ModuleProcess | None = None

    def start(self) -> None:
        """Start the process, which imports torch while the caller goes on."""
        self._get_process()

    def ask(self, request: ModuleRequest[A]) -> A:
        """Return the answer to `request`.

        Raises:
            CkptoolError: as the request says.
            ModuleError: the code ended its process, or ran longer than it may.
        """
        target = str(request.target.module)
        start_step(request.activity)
        number = secrets.randbits(63)
        content = pickle.dumps((number, request), pickle.HIGHEST_PROTOCOL)
        process = self._get_process()
        try:
            reply = process.exchange(number, content, self._timeout)
        except ProcessEndedError as error:
            self._end_process()
            raise ModuleError(target, str(error)) from error
        except BaseException:
            self._end_process()
            raise
        if isinstance(reply, Failure):
            raise restore_error(reply, target) from ChildTraceback(f"\n{reply.trace}")
        try:
            return cast("A", decode_answer(reply.content, request.answer_type))
        except DecodeError as error:
            self._end_process()
            raise ModuleError(target, f"its answer is invalid: {error}") from error

    def create_worker(self, folder: Path, import_path: Sequence[str]) -> "ChildProcessWorker":
        """Return a worker whose process runs in another folder and imports from another path."""
        place = ProcessPlace(str(folder), tuple(import_path))
        return ChildProcessWorker(self._timeout, self._show_lines, place)

    def close(self) -> None:
        """End the process, and show what user code printed last."""
        self._end_process()
        self._output.finish()

    def _get_process(self) -> "ModuleProcess":
        if self._process is None:
            self._process = ModuleProcess(self._output, self._place)
        return self._process

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


class ProcessPlace(NamedTuple):
    """Where a child process runs, if not where the command does."""

    folder: str
    """Working directory."""
    import_path: tuple[str, ...]
    """`sys.path`."""


class ProcessEndedError(Exception):
    """The child process ended before it answered; the message says how."""


class ModuleProcess:
    """A running child process and the threads that read its pipes."""

    def __init__(self, output: UserOutput, place: ProcessPlace | None = None) -> None:
        """Start the process.

        Raises:
            UsageError: no process can be started.
        """
        self._process = _take_interpreter(place)
        self._frames: SimpleQueue[bytes | None] = SimpleQueue()
        self._is_overdue = False
        self._output_reader = Thread(target=self._read_output, args=(output,), daemon=True)
        self._answer_reader = Thread(target=self._read_answers, daemon=True)
        for thread in (self._output_reader, self._answer_reader):
            thread.start()
        import_path = place.import_path if place else tuple(sys.path)
        setup = ChildSetup(import_path, TRUST_RULE.get().uses_file_kwargs)
        with suppress(OSError):  # a process that has ended is an error of the first request
            self._send(pickle.dumps(setup))

    def exchange(self, number: int, content: bytes, timeout: float) -> Answer | Failure:
        """Send a request and return the reply, within `timeout` seconds.

        Raises:
            ProcessEndedError: the process ended, or was ended, before it replied.
        """
        timer = Timer(timeout, self._end_overdue)
        timer.daemon = True
        timer.start()
        try:
            self._send(content)
            while True:
                message: Message = decode_message(self._receive())
                if isinstance(message, Notice):
                    _pass_on_notice(message)
                elif message.number == number:
                    return message
        except (OSError, EOFError, DecodeError) as error:
            raise ProcessEndedError(self._explain_end(timeout)) from error
        finally:
            timer.cancel()

    def end(self) -> None:
        """End the process and all that it started, and read what they printed last."""
        self._kill()
        self._process.wait()
        pipes = self._process.stdin, self._process.stdout, self._process.stderr
        for pipe, reader in zip(
            pipes, (None, self._answer_reader, self._output_reader), strict=True
        ):
            if reader is not None:
                reader.join(_LAST_WORDS)
            # What a fork outside of the group keeps open is still being read, and left alone.
            if pipe is not None and (reader is None or not reader.is_alive()):
                pipe.close()

    def _send(self, content: bytes) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        write_frame(lambda part: os.write(stdin.fileno(), part), content)

    def _receive(self) -> bytes:
        """Return the next frame.

        Raises:
            EOFError: the process has ended, or closed its pipe.
        """
        while True:
            has_ended = self._has_ended()
            with suppress(Empty):
                frame = self._frames.get(timeout=_POLL_INTERVAL)
                if frame is None:
                    raise EOFError
                return frame
            if has_ended:
                raise EOFError

    def _read_answers(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with suppress(OSError):
            for frame in read_frames(stdout.fileno(), MAX_ANSWER_NBYTES):
                self._frames.put(frame)
        self._frames.put(None)

    def _read_output(self, output: UserOutput) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        with suppress(OSError):
            while content := os.read(stderr.fileno(), 1 << 16):
                output.add(content)

    def _end_overdue(self) -> None:
        self._is_overdue = True
        self._kill()

    def _has_ended(self) -> bool:
        """Whether the process has ended; on POSIX its number stays taken until `end`."""
        if os.name != "posix":
            return self._process.poll() is not None
        if self._process.returncode is not None:
            return True
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return ended is not None

    def _kill(self) -> None:
        """Kill the process and its group: what user code started ends with it."""
        if self._process.returncode is not None:
            return
        with suppress(OSError):
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def _explain_end(self, timeout: float) -> str:
        deadline = time.monotonic() + _LAST_WORDS
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL / 10)
        ended_by_itself = self._has_ended()
        self.end()
        status = self._process.returncode
        if self._is_overdue:
            return f"running its code took longer than {timeout:g} s and was ended (see --timeout)"
        if not ended_by_itself:
            return "the process running its code gave an invalid answer and was ended"
        if status == -signal.SIGKILL:
            return "running its code ended the process: SIGKILL, as when memory runs out"
        if status < 0:
            return f"running its code ended the process: {signal.Signals(-status).name}"
        return f"running its code ended the process with exit status {status}"


def _pass_on_notice(notice: Notice) -> None:
    rule = TRUST_RULE.get()
    match notice:
        case Announcement(target, arguments) if rule.announce_file_kwargs is not None:
            rule.announce_file_kwargs(target, arguments)
        case NamespaceNotice(target, parameter) if rule.announce_namespace is not None:
            rule.announce_namespace(target, parameter)
        case WarningNotice(texts, count) if rule.announce_warnings is not None:
            rule.announce_warnings(texts, count)
        case _:
            pass


def _take_interpreter(place: ProcessPlace | None) -> "Popen[bytes]":
    """Return an interpreter for user code.

    Raises:
        UsageError: no process can be started.
    """
    try:
        if place is not None:
            return start_interpreter(tuple(SHARED_DESCRIPTORS), place.folder, place.import_path)
        return take_interpreter(tuple(SHARED_DESCRIPTORS))
    except OSError as error:
        raise UsageError(
            f"no process can be started for the module's code ({error}): --in-process runs it here"
        ) from error

"""ModuleRequest -> its answer: the protocol, and the worker that runs user code in this process."""

import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from ckptool.locations import Location
from ckptool.values.progress import start_step

if TYPE_CHECKING:
    from ckptool.commands.target import ModuleTarget
    from ckptool.commands.worker.requests import ModuleRequest

A = TypeVar("A")

DEFAULT_TIMEOUT: Final = 3600.0
"""Seconds that a request may take unless the user says otherwise."""


def _show_lines(lines: Sequence[str]) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


class ModuleWorker(Protocol):
    """Runs code that is not ours and returns facts."""

    def start(self) -> None:
        """Prepare for requests, where that takes time; without it the first request does."""

    def ask(self, request: "ModuleRequest[A]") -> A:
        """Return the answer to `request`.

        Raises:
            CkptoolError: as the request says.
            ModuleError: the code ended its process, or ran longer than it may.
        """
        ...

    def create_worker(self, folder: Path, import_path: Sequence[str]) -> "ModuleWorker":
        """Return a worker of a process that runs in `folder`, with this `sys.path`."""
        ...

    def close(self) -> None:
        """End what runs, and show what user code has printed."""


class InProcessWorker:
    """Runs user code in this process: the library's way, and that of `--in-process`."""

    def __init__(self) -> None:
        from ckptool.commands.worker.session import ModuleSession

        self._session = ModuleSession()

    def start(self) -> None:
        """Do nothing: torch is imported when it is needed."""

    def ask(self, request: "ModuleRequest[A]") -> A:
        """Return the answer to `request`."""
        start_step(request.activity)
        return request.answer(self._session)

    def create_worker(self, folder: Path, import_path: Sequence[str]) -> ModuleWorker:
        """Return the worker of a child process: this one has imported the module already."""
        from ckptool.commands.worker.child_worker import ChildProcessWorker

        return ChildProcessWorker(DEFAULT_TIMEOUT, _show_lines).create_worker(folder, import_path)

    def close(self) -> None:
        """Do nothing: nothing is left running."""


_WORKER: Final[ContextVar[ModuleWorker | None]] = ContextVar("_WORKER", default=None)
use_worker: Final = _WORKER.set
stop_using_worker: Final = _WORKER.reset


def get_worker() -> ModuleWorker:
    """Return the worker of the running command; for a caller of the library, a new one."""
    return _WORKER.get() or InProcessWorker()


def close_worker() -> None:
    """Close the worker of the running command, if it has one."""
    worker = _WORKER.get()
    if worker is not None:
        worker.close()


def start_early(worker: ModuleWorker, target: "ModuleTarget | None", path: Location) -> None:
    """Start the worker while the checkpoint at `path` is read, if there is a module to ask.

    What is read from standard input lies in a file without a name: a child process gets that when
    it is started, so it starts later.
    """
    if target is not None and str(path) != "-":
        worker.start()

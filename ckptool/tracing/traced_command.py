"""A command -> its exit code and the records of its processes."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckptool.errors import UsageError, describe_os_error
from ckptool.tracing.record_files import read_records
from ckptool.tracing.records import AnyRecord

STARTUP_FOLDER: Final = Path(__file__).parent / "startup"
_NOTHING: Final = subprocess.DEVNULL
_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
_OWN_PACKAGES: Final = ("ckptool", "msgspec", "blake3")


class TracedRun(Struct, frozen=True):
    """A command that has ended."""

    exit_code: int
    """As a shell gives it: 128 and the number of the signal that ended it."""
    records: tuple[AnyRecord, ...]
    error_text: str = ""
    """What it wrote to standard error, if its streams were not passed through."""


def run_traced(
    words: Sequence[str],
    *,
    folder: Path | None = None,
    settings: Mapping[str, str] = {},
    is_shown: bool = True,
) -> TracedRun:
    """Run a command with its own standard streams, and return what its processes recorded.

    SIGTERM and SIGHUP are passed on to it; Ctrl-C reaches it from the terminal.

    Args:
        words: the command.
        folder: where it is run; None is the current folder.
        settings: further environment variables.
        is_shown: whether its streams are those of this process; otherwise it has no input, and
            what it prints is dropped, but for the errors.

    Raises:
        UsageError: it cannot be started.
    """
    with (
        tempfile.TemporaryDirectory(prefix="ckptool-run-") as trace_folder,
        tempfile.TemporaryFile() as error_file,
    ):
        environment = {**_build_environment(trace_folder), **settings}
        sys.stdout.flush()
        streams = (None, None, None) if is_shown else (_NOTHING, _NOTHING, error_file)
        try:
            process = subprocess.Popen(  # noqa: S603 (the user's own command)
                words,
                env=environment,
                cwd=folder,
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
            )
        except OSError as error:
            raise UsageError(f"{words[0]}: {_explain_start_error(error, words)}") from error
        return_code = _wait_for(process)
        records = tuple(read_records(Path(trace_folder)))
        error_file.seek(0)
        error_text = error_file.read().decode(errors="replace")
    exit_code = 128 - return_code if return_code < 0 else return_code
    return TracedRun(exit_code, records, error_text)


def _build_environment(trace_folder: str) -> dict[str, str]:
    """Return the environment in which Python processes record to `trace_folder`."""
    python_path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(STARTUP_FOLDER), python_path))),
        "CKPTOOL_TRACE": trace_folder,
        "CKPTOOL_TRACE_PATH": os.pathsep.join(dict.fromkeys(_list_package_folders())),
    }


def _list_package_folders() -> list[str]:
    """Return the folders from which this process imports ckptool and what it needs."""
    specs = filter(None, map(find_spec, _OWN_PACKAGES))
    return [str(Path(spec.origin).parents[1]) for spec in specs if spec.origin]


def _explain_start_error(error: OSError, words: Sequence[str]) -> str:
    """Return why a command did not start; a script is given to Python."""
    if words[0].endswith(".py") and Path(words[0]).is_file():
        return f"is not a command but a script: ckptool run -- {shlex.join(['python', *words])}"
    if isinstance(error, FileNotFoundError) and error.filename == words[0]:
        return "no such command"
    return describe_os_error(error)


def _wait_for(process: "subprocess.Popen[bytes]") -> int:
    """Wait for the command; signals to this process end it, and not the report."""

    def pass_on(number: int, frame: object) -> None:  # noqa: ARG001
        process.send_signal(number)

    old_handlers = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    old_handlers[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)

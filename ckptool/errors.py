"""Exceptions for failed reading, building, planning and writing; defects found are Findings.

CkptoolError
├── UsageError             an option or a combination of options is invalid
│   ├── ConfigError        a configuration file is invalid
│   └── NoStateError       a file has no state at the place that is named
├── ReadError              a checkpoint cannot be read
│   ├── UnknownFormatError     no reader recognises the first bytes
│   └── CorruptCheckpointError the container is recognised, and inconsistent or truncated
├── ModuleError            the module cannot be imported or constructed
├── LoadError              a checkpoint was not loaded into a live module, which is as it was
├── PlanError              a migration plan does not fit the checkpoint
│   ├── RenameRefusedError     a rename would hit a key in use, or another tensor (CK221)
│   └── UnsupportedValueError  the container cannot store some tensors (CK311)
├── WorkerError            a task on a cluster failed
└── WriteError             output was not completed; the destination is unchanged

Interrupted(SystemExit): a signal ended the process.
"""

import errno
import os
import signal
from collections.abc import Mapping
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Final

from ckptool.locations import Location
from ckptool.phrases import MAX_LINE_CHARS, cut_middle

_MAX_NAMES: Final = 10_000
"""Names of a folder in which a similar one is looked for."""
_MIN_SIMILARITY: Final = 0.7
_OS_ERROR_TEXTS: Final = {
    errno.EISDIR: "is a folder, and a file is expected",
    errno.ELOOP: "is a symbolic link that leads back to itself",
    errno.ENAMETOOLONG: "the name is longer than a file's name can be",
}
"""errno -> what is wrong, where the system's words leave it open."""


class CkptoolError(Exception):
    """Base of all exceptions that ckptool raises deliberately; the message is one line."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The message in lines: one, except where several questions are open."""
        return (cut_middle(" ".join(str(self).splitlines()), MAX_LINE_CHARS),)

    def _render_traceback_(self) -> list[str]:
        """Return the traceback that IPython shows: without the frames of this package."""
        import traceback

        package = str(Path(__file__).parent)
        frames = takewhile(
            lambda frame: not frame.filename.startswith(package),
            traceback.extract_tb(self.__traceback__),
        )
        lines = traceback.format_list([f for f in frames if "/IPython/" not in f.filename])
        return [*lines, *traceback.format_exception_only(self)]


class UsageError(CkptoolError):
    """Invalid option or argument; the message says what is valid."""


class ConfigError(UsageError):
    """A configuration file is invalid."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class NoStateError(UsageError):
    """A checkpoint has nothing at the place that --at, or the configuration, names."""


class ReadError(CkptoolError):
    """A checkpoint could not be read."""

    def __init__(self, path: Location, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Make the exception picklable: its `args` are not those of `__init__`."""
        return type(self), (self.path, self.reason)


class UnknownFormatError(ReadError):
    """No reader recognises the first bytes of the file."""


class CorruptCheckpointError(ReadError):
    """The container is recognised, but its contents are inconsistent or truncated."""


class ModuleError(CkptoolError):
    """A module could not be imported, constructed or examined."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"{target}: {reason}")
        self.target = target
        self.reason = reason


class LoadError(CkptoolError):
    """A checkpoint was not loaded into a live module; the text is the report's short form."""

    def __init__(self, text: str, report: Any = None) -> None:
        super().__init__(text, report)
        self.text = text
        self.report = report
        """The LoadReport."""

    def __str__(self) -> str:
        return self.text

    @property
    def lines(self) -> tuple[str, ...]:
        """The verdict and the open questions."""
        return tuple(line.strip() for line in self.text.splitlines())


class PlanError(CkptoolError):
    """A migration plan cannot be applied to this checkpoint."""


class RenameRefusedError(PlanError):
    """The target key of a rename is in use, or belongs to a tensor of a different shape."""

    def __init__(
        self, key: str, to: str, reason: str, fitting: Mapping[str, str], step: str = ""
    ) -> None:
        super().__init__(f"{step}CK221: `{key}` is not renamed to `{to}`: {reason}")
        self.key = key
        self.to = to
        self.reason = reason
        self.fitting = fitting
        """Old and new keys of the renames of the same step that are not refused."""


class UnconfirmedRenamesError(PlanError):
    """The outputs of the old module do not confirm renames that were tried."""

    def __init__(self, reason: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.keys = keys
        """Keys of the module that are not confirmed; () for all."""


class UnsupportedValueError(PlanError):
    """A container cannot hold some tensors."""

    def __init__(self, path: Location, to: str, reasons: dict[str, str], description: str) -> None:
        super().__init__(f"{path}: CK311: {to} cannot store {description}")
        self.to = to
        self.reasons = reasons
        """Key -> reason: a dtype, a layout."""


class RevisionError(CkptoolError):
    """A chain of migrations is inconsistent, or a checkpoint has no usable place in it."""


class WorkerError(CkptoolError):
    """A task on a cluster failed or was lost."""


class WriteError(CkptoolError):
    """Output could not be completed; the destination is unchanged."""


class StrictLoadError(WriteError):
    """A module does not load the file that was to be written; nothing is kept."""


class Interrupted(SystemExit):
    """A signal such as SIGTERM ended the process; SIGINT stays KeyboardInterrupt.

    The exit status is 128 + the number of the signal; `name` is its name, "SIGTERM".
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


class LoadWarning(UserWarning):
    """After `ckptool.install()`: load_state_dict(strict=False) left keys out."""


def describe_os_error(error: OSError | ValueError, path: Path | None = None) -> str:
    """Return what is wrong with a file that could not be opened: "no such file; did you mean ...?".

    `path` is the file that was named; None for that of the error, if it has one. A ValueError is
    that of a path which no file can have.
    """
    if not isinstance(error, OSError):
        return str(error)
    if path is None and isinstance(error.filename, str | bytes):
        path = Path(os.fsdecode(error.filename))
    if isinstance(error, FileNotFoundError):
        if path is None:
            return "no such file"
        if path.is_symlink():
            return f"is a symbolic link to {path.readlink()}, which does not exist"
        return f"no such file{_suggest_path(path)}"
    if isinstance(error, NotADirectoryError) and path is not None:
        above = next((parent for parent in path.parents if parent.is_file()), None)
        return f"no such file: {above} is a file, not a folder" if above else "is not a folder"
    return _OS_ERROR_TEXTS.get(error.errno or 0) or error.strerror or str(error)


def _suggest_path(path: Path) -> str:
    """Return "; did you mean ...?" for the first part of a path that does not exist.

    Return "" if no name in that folder is similar.
    """
    from difflib import get_close_matches

    missing = next((p for p in (*reversed(path.parents), path) if not os.path.lexists(p)), None)
    if missing is None:
        return ""
    try:
        with os.scandir(missing.parent) as entries:
            names = [entry.name for entry in islice(entries, _MAX_NAMES)]
    except OSError:
        return ""
    close = get_close_matches(missing.name, names, n=1, cutoff=_MIN_SIMILARITY)
    if not close:
        return ""
    similar_path = missing.parent / close[0] / path.relative_to(missing)
    return f"; did you mean {similar_path}?" if os.path.lexists(similar_path) else ""

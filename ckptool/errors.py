"""Exceptions: what cannot be read, built, planned or written. What is read and wrong is a Finding.

CkptoolError
├── UsageError             an option, or the way options go together, makes no sense
│   └── ConfigError        a configuration file says what ckptool does not know
├── ReadError              bytes on disk
│   ├── UnknownFormatError     no reader recognises them
│   └── CorruptCheckpointError the container is recognised and contradicts itself
├── ModuleError            the module cannot be imported or constructed
├── PlanError              a migration plan does not fit the checkpoint
│   ├── RenameRefusedError     a rename would hit a key in use, or another tensor (CK221)
│   └── UnsupportedValueError  the container cannot hold what the file has (CK311)
├── WorkerError            what was sent to a cluster did not come back
└── WriteError             output was not completed; the destination is untouched

Interrupted, of SystemExit: a signal told the process to end.
"""

import signal
from pathlib import Path

from ckptool.locations import Location


class CkptoolError(Exception):
    """Base of every error that ckptool raises on purpose: one line, for the person who asked."""


class UsageError(CkptoolError):
    """What was asked for cannot be done; the message says what can."""


class ConfigError(UsageError):
    """A configuration file has a fault."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ReadError(CkptoolError):
    """A checkpoint could not be read."""

    def __init__(self, path: Location, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Let it come back from another process."""
        return type(self), (self.path, self.reason)


class UnknownFormatError(ReadError):
    """No reader recognises the first bytes of the file."""


class CorruptCheckpointError(ReadError):
    """The container is recognised, but its contents contradict themselves or are cut short."""


class ModuleError(CkptoolError):
    """A module could not be imported, constructed or examined."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"{target}: {reason}")
        self.target = target
        self.reason = reason


class PlanError(CkptoolError):
    """A migration plan cannot be applied to this checkpoint."""


class RenameRefusedError(PlanError):
    """A rename would hit a key that is in use, or a tensor of another shape."""

    def __init__(self, key: str, to: str, reason: str, step: str = "") -> None:
        super().__init__(f"{step}CK221: `{key}` is not renamed to `{to}`: {reason}")
        self.key = key
        self.to = to
        self.reason = reason


class UnsupportedValueError(PlanError):
    """A container cannot hold some tensors."""

    def __init__(self, path: Location, to: str, reasons: dict[str, str], shown: str) -> None:
        super().__init__(f"{path}: CK311: {to} cannot hold {shown}")
        self.to = to
        self.reasons = reasons
        """Key -> why: a dtype, a layout."""


class WorkerError(CkptoolError):
    """A cluster could not do what it was given."""


class WriteError(CkptoolError):
    """Output could not be completed; the destination is untouched."""


class Interrupted(SystemExit):
    """The process was told to end; SIGINT stays Python's KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name

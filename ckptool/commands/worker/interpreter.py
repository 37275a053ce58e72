"""The interpreter that runs user code: started when it is needed, or ahead of the parent's imports.

Importing torch takes most of the time of a command with a module. The command line alone says if a
module will be asked for, so the entry point starts the interpreter before it imports anything, and
both import side by side. Nothing but the standard library is imported here.
"""

import os
import sys
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from subprocess import Popen

_CODE = (
    "import sys; _, parent, *sys.path[:] = sys.argv; "
    "sys.argv[:] = ['ckptool']; "
    "from ckptool.commands.worker.child import main; main(int(parent))"
)
_MODULE_OPTIONS = ("-m", "--module")
_STARTS_LATER = ("--in-process", "-I", "--path")
"""Options with which the interpreter is not needed, or has to find another torch."""
_early_interpreters: "list[Popen[bytes]]" = []
"""The interpreter that was started early, until it is taken."""


def start_interpreter(
    descriptors: Sequence[int], folder: "str | None" = None, import_path: Sequence[str] = ()
) -> "Popen[bytes]":
    """Start an interpreter like this one, in a group of its own: Ctrl-C is for its parent alone.

    It imports torch, and then waits for its first frame.

    Args:
        descriptors: open files of this process that it gets.
        folder: its working directory; None for that of this process.
        import_path: its `sys.path`; () for that of this process.

    Raises:
        OSError: no process can be started.
    """
    from subprocess import PIPE, Popen, _args_from_interpreter_flags  # type: ignore[attr-defined]

    flags = _args_from_interpreter_flags()
    return Popen(  # noqa: S603 (this interpreter, with our own code)
        [sys.executable, *flags, "-c", _CODE, str(os.getpid()), *(import_path or sys.path)],
        cwd=folder,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        pass_fds=tuple(descriptors),
        process_group=0 if os.name == "posix" else None,
    )


def start_interpreter_early(words: Sequence[str]) -> None:
    """Start the interpreter if the command line `words` names a module.

    It ends with this process, also if nobody takes it. If it cannot be started, whoever needs it
    tries again and says why.
    """
    options = [word.partition("=")[0] for word in words]
    if any(option in _STARTS_LATER for option in options):
        return
    if any(option in _MODULE_OPTIONS for option in options):
        try:
            _early_interpreters.append(start_interpreter(()))
        except OSError:
            return


def take_interpreter(descriptors: Sequence[int]) -> "Popen[bytes]":
    """Return the interpreter that was started early, else a new one.

    Args:
        descriptors: open files of this process that it needs; one that was started early has none.

    Raises:
        OSError: no process can be started.
    """
    if _early_interpreters:
        process = _early_interpreters.pop()
        if not descriptors and process.poll() is None:
            return process
        process.kill()
        process.communicate()
    return start_interpreter(descriptors)

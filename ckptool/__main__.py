"""Entry point of `ckptool` and of `python -m ckptool`."""

import os
import signal
import sys


def start() -> None:
    """Run the command; an interrupt before its modules are imported ends it without a traceback."""
    if None in {sys.stdin, sys.stdout, sys.stderr}:
        _open_closed_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ckptool.commands.worker.interpreter import start_interpreter_early

    start_interpreter_early(sys.argv[1:])
    from ckptool.cli import run

    run()


def _open_closed_streams() -> None:
    """Give the standard streams that are closed (`>&-`) descriptors of their own, to /dev/null.

    Otherwise the next file that is opened has the number of one of them. What is written to
    standard output fails, since its descriptor is for reading: a report is not lost in silence.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, flags), descriptor)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    start()

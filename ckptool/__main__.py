"""Entry point of `ckptool` and of `python -m ckptool`."""

import signal
import sys


def start() -> None:
    """Run the command; an interrupt before its modules are imported ends it without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ckptool.commands.worker.interpreter import start_interpreter_early

    start_interpreter_early(sys.argv[1:])
    from ckptool.cli import run

    run()


if __name__ == "__main__":
    start()

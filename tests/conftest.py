"""Fixtures shared by all tests: real files, and the command as a real process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"

# The machine that runs CI is slow and shared: how long an example takes says nothing there. Its
# examples are the same every time, so that it fails by what changed; elsewhere they are new ones.
settings.register_profile("ckptool", deadline=None, derandomize="CKPTOOL_CI" in os.environ)
settings.load_profile("ckptool")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores it, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_TERMINAL = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "GITHUB_STEP_SUMMARY"}
"""What the place where the tests run would change in what the command prints."""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def ckptool() -> Callable[..., Ran]:
    """Run the command in a process of its own, from the repository's root unless told otherwise."""

    def run(*words: object, cwd: Path = ROOT, **environment: str) -> Ran:
        home = {k: v for k, v in os.environ.items() if k not in _TERMINAL}
        found = os.pathsep.join([str(ROOT), *filter(None, [home.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "ckptool", *map(str, words)],
            cwd=cwd,
            env={**home, "PYTHONPATH": found, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def samples() -> Path:
    return SAMPLES

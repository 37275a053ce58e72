"""The command, run in a process of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

_TERMINAL = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "GITHUB_STEP_SUMMARY"}
"""What the place where the tests run would change in what the command prints."""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def run_process(*words: object, cwd: Path = ROOT, **environment: str) -> Ran:
    """Run the command in a process of its own, from the repository's root unless told otherwise."""
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

"""The command, run in a process of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

_TERMINAL = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "GITHUB_STEP_SUMMARY"}
"""What the place where the tests run would change in what the command prints."""


LINEAR = ("-m", "torch.nn:Linear", "-k", "in_features=2", "-k", "out_features=3")
WITH_BUFFER = (
    *("-m", "samples.attention:CausalAttentionWithBuffer"),
    *("-k", "d_in=3", "-k", "d_out=2", "-k", "context_length=6"),
)
_HEAVY_IMPORTS = """
import sys
from click.testing import CliRunner
from ckptool.cli import main
result = CliRunner().invoke(main, sys.argv[1:])
print(result.exit_code, sorted({"torch", "numpy", "safetensors"} & set(sys.modules)))
"""


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


def run_and_list_heavy_imports(*words: object) -> str:
    """Return the exit code of a process that runs the command, and what it imported of torch."""
    done = subprocess.run(
        [sys.executable, "-c", _HEAVY_IMPORTS, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip() + done.stderr

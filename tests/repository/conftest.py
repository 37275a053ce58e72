"""Tools of the dev environment, run as a contributor runs them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_runs import Ran
from paths import ROOT

HERE = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
"""Where commands are looked for: first beside the interpreter that runs the tests."""


@pytest.fixture(scope="session")
def tool() -> Callable[..., Ran]:
    """Run a command of this environment, in the repository's root unless told otherwise."""

    def run(*words: object, cwd: Path = ROOT, **environment: str) -> Ran:
        name, *rest = map(str, words)
        found = shutil.which(name, path=HERE)
        assert found, f"{name} is not installed: pip install -c constraints.txt -e '.[dev]'"
        plain = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("GIT_", "GITHUB_", "GH_", "MYPY", "PYTHON"))
        }
        done = subprocess.run(
            [found, *rest],
            cwd=cwd,
            env={**plain, "PATH": HERE, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run

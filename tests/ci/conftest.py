"""A git repository with the reference case in it, as somebody else's project would have it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_runs import Ran
from paths import ROOT, SAMPLES

POLICY = """
[[models]]
path = "*.pth"
module = "attention:CausalAttentionWithBuffer"
kwargs = { d_in = 3, d_out = 2, context_length = 6, dropout = 0.0, qkv_bias = false }

[require]
coverage = 1.0
"""


@dataclass(frozen=True)
class Project:
    folder: Path
    run: Callable[..., Ran]

    def git(self, *words: str) -> None:
        ran = self.run("git", *words)
        assert ran.code == 0, ran.err

    def migrate(self) -> None:
        """Put the migrated checkpoint in the old one's place."""
        ran = self.run("ckptool", "migrate", "model.pth", "-o", "new.pth")
        assert ran.code == 0, ran.out + ran.err
        (self.folder / "new.pth").replace(self.folder / "model.pth")


@pytest.fixture
def project(tmp_path) -> Project:
    """A repository whose code has the buffer, and whose checkpoint does not."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(SAMPLES / "attention.py", folder)
    shutil.copy(SAMPLES / "model.pth", folder)
    (folder / "ckptool.toml").write_text(POLICY)
    one = Project(folder, _runner(folder, tmp_path))
    one.git("init", "-q", "-b", "main")
    one.git("add", ".")
    one.git("commit", "-q", "-m", "A release")
    return one


def _runner(folder: Path, home: Path) -> Callable[..., Ran]:
    """Return what runs a command there, with the `ckptool` of this environment on the PATH."""
    tools = home / "bin"
    tools.mkdir()
    command = tools / "ckptool"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ckptool "$@"\n')
    command.chmod(0o755)
    plain = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "GITHUB_"))},
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PRE_COMMIT_HOME": str(home / "pre-commit"),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        **{
            f"GIT_{who}_{what}": "t@example.org"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }

    def run(*words: str, **environment: str) -> Ran:
        done = subprocess.run(
            words,
            cwd=folder,
            env={**plain, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run

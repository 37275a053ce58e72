"""Renames that nothing proves are asked about on a terminal, and only there."""

import os
import pty
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from paths import ROOT

pytestmark = pytest.mark.process

ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
COMMAND = (
    *(sys.executable, "-m", "ckptool", "migrate", "old.pth", "-o", "new.pth"),
    *("-m", "migration.models:Scaled"),
)


@pytest.fixture
def folder(tmp_path):
    state = {"lin.weight": torch.ones(2, 2), "lin.bias": torch.zeros(2), "scale": torch.ones(2)}
    torch.save(state, tmp_path / "old.pth")
    return tmp_path


def run_on_terminal(folder, answer: bytes, *words: str) -> tuple[int, str]:
    controller, terminal = pty.openpty()
    text = b""
    with subprocess.Popen(
        (*COMMAND, *words), cwd=folder, env=ENVIRONMENT, stdin=terminal, stderr=terminal,
        stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        os.close(terminal)
        while b"[y/N]" not in text:
            text += os.read(controller, 1000)
        os.write(controller, answer)
        out, _ = process.communicate()
    with suppress(OSError):  # Linux raises where the other end is closed
        while part := os.read(controller, 1000):
            text += part
    os.close(controller)
    return process.returncode, text.decode() + out.decode()


def test_an_answer_of_yes(folder):
    code, text = run_on_terminal(folder, b"y\n")
    assert "Is `lin.*` `fc.*` now? " in text
    assert (code, "migrated: loads strictly" in text) == (0, True)
    assert torch.load(folder / "new.pth").keys() == {"fc.weight", "fc.bias", "scale"}


def test_the_plan_that_is_saved_has_the_answer(folder):
    """The plan with the question was there already, and so the second run was refused."""
    code, text = run_on_terminal(folder, b"y\n", "--save-plan", "plan.toml")
    assert (code, "migrated: loads strictly" in text) == (0, True), text
    assert '"lin.bias" = "fc.bias"' in (folder / "plan.toml").read_text()
    assert "?" not in (folder / "plan.toml").read_text()


def test_an_answer_of_no(folder):
    code, text = run_on_terminal(folder, b"n\n")
    assert (code, "1 open question" in text) == (2, True)
    assert not (folder / "new.pth").exists()


def test_nobody_is_asked_in_a_pipe(folder):
    ran = subprocess.run(
        COMMAND, cwd=folder, env=ENVIRONMENT, input=b"y\n", capture_output=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert b"--rename 'lin.*=fc.*'" in ran.stderr
    assert not (folder / "new.pth").exists()

"""Code that a configuration names, and arguments that a file brings: said first, and refusable."""

import os
import re
import subprocess
import sys

import pytest
import torch
from files import save
from paths import ROOT

NET = """
import torch
from pathlib import Path
class Net(torch.nn.Module):
    def __init__(self, width=2, ckpt_path=""):
        super().__init__()
        if ckpt_path:
            Path(ckpt_path).write_text("used")
        self.layer = torch.nn.Linear(width, width)
"""
COMMANDS = {
    "diff": ("diff", "m.ckpt"),
    "gate": ("gate", "m.ckpt"),
    "verify": ("verify", "m.ckpt", "--device", "cpu"),
    "migrate": ("migrate", "m.ckpt", "--dry-run", "--drop-extra"),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    save(
        tmp_path / "m.ckpt",
        {
            "state_dict": torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2)}).state_dict(),
            "hyper_parameters": {"width": 2, "ckpt_path": "marker", "unused": 3},
        },
    )
    (tmp_path / "ckptool.toml").write_text('[[models]]\npath = "*"\nmodule = "net:Net"\n')
    return tmp_path


@pytest.mark.process
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_the_file_that_names_the_code_is_said_before_it_is_run(words, folder):
    (folder / "net.py").write_text("import sys\nsys.stderr.write('RUNNING\\n')\n" + NET)
    done = subprocess.run(
        [sys.executable, "-m", "ckptool", *words], cwd=folder, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    notice, running = (
        done.stderr.find("ckptool.toml selects the module"),
        done.stderr.find("RUNNING"),
    )
    assert 0 <= notice < running, done.stderr
    assert "net:Net (--no-config ignores it)" in done.stderr


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_no_config_runs_none_of_its_code(words, folder, run_command):
    (folder / "net.py").write_text("open('ran', 'w')\n")
    ran = run_command(*words, "--no-config", cwd=folder)
    assert not (folder / "ran").exists()
    assert ran.notices == ""
    run_command(*words, cwd=folder)
    assert (folder / "ran").exists()


def test_a_lock_that_the_configuration_names_is_announced(folder, run_command):
    assert run_command("lock", "-m", "net:Net", "-o", "net.lock.json", cwd=folder).code == 0
    with (folder / "ckptool.toml").open("a") as file:
        file.write('against = "net.lock.json"\n')
    ran = run_command("gate", cwd=folder)
    assert "ckptool.toml selects the module to run, net:Net" in ran.notices
    assert run_command("gate", "--no-config", cwd=folder).code == 2


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_arguments_of_the_file_are_said_and_can_be_refused(words, folder, run_command):
    ran = run_command(*words, cwd=folder)
    assert (
        "net:Net is built with arguments from the file: width=2, ckpt_path='marker'"
        " (--no-file-kwargs refuses them)"
    ) in ran.notices
    assert (folder / "marker").read_text() == "used"
    (folder / "marker").unlink()
    refused = run_command(*words, "--no-file-kwargs", cwd=folder)
    assert "from the file" not in refused.notices
    assert not (folder / "marker").exists()
    policy = (folder / "ckptool.toml").read_text()
    (folder / "ckptool.toml").write_text(f"file-kwargs = false\n{policy}")
    run_command(*words, cwd=folder)
    assert not (folder / "marker").exists()


def test_given_arguments_take_the_place_of_those_of_the_file(folder, run_command):
    ran = run_command("diff", "m.ckpt", "-k", "width=2", cwd=folder)
    assert "from the file" not in ran.notices
    assert not (folder / "marker").exists()


@pytest.mark.process
def test_the_library_says_nothing(folder):
    code = "import ckptool; ckptool.diff('m.ckpt')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stderr == ""


def test_arguments_of_the_user_are_not_said_to_be_the_files(tmp_path, run_command):
    """The older module gets the arguments of the newer one; they come from the command line."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class New(nn.Linear):\n"
        "    def __init__(self, width):\n        super().__init__(width, 2)\n"
        "class Old(New):\n    pass\n"
    )
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "model.pth")
    words = ("-m", "net:New", "-k", "width=3", "--old", "model.pth", "--old-module", "net:Old")
    ran = run_command("verify", "model.pth", *words, "--input", "float32[1,3]", cwd=tmp_path)
    assert ran.code == 0
    assert re.search(r"equality +passed", ran.out)
    assert "from the file" not in ran.err + ran.notices + ran.out

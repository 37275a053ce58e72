"""What a newcomer types before reading anything: help, typos, a class by its bare name."""

import shlex
import subprocess

import pytest
import torch
from torch import nn

from ckptool.phrases import quote_shell

MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)
"""
TRAIN = """
import argparse

from pkg.model import Net

parser = argparse.ArgumentParser()
parser.add_argument("--out", required=True)
args = parser.parse_args()
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "model.py").write_text(MODEL)
    (tmp_path / "train.py").write_text(TRAIN)
    torch.save(nn.Sequential(nn.Linear(3, 3)).state_dict(), tmp_path / "runs" / "old.pth")
    return tmp_path


def test_help_and_version_as_commands(run_command):
    assert run_command("help").out == run_command("--help").out
    assert run_command("help", "diff").out == run_command("diff", "--help").out
    versions = {run_command(word).out for word in ("version", "--version", "-V")}
    assert len(versions) == 1
    assert torch.__version__ in versions.pop()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("runs/odl.pth", "runs/old.pth"),
        ("rusn/old.pth", "runs/old.pth"),
        ("rnus/old.pth", "runs/old.pth"),
    ],
)
def test_a_typo_in_a_path_is_answered_with_the_path(project, run_command, typed, meant):
    ran = run_command("inspect", typed, cwd=project)
    assert (ran.code, ran.err) == (2, f"ckptool: {typed}: no such file; did you mean {meant}?\n")


@pytest.mark.parametrize("typed", ["elsewhere/x.pth", "runs/completely-different.bin"])
def test_no_path_is_proposed_where_none_is_similar(project, run_command, typed):
    assert run_command("inspect", typed, cwd=project).err == f"ckptool: {typed}: no such file\n"


@pytest.mark.parametrize(
    "name",
    ["Net", "pkg.model.Net", "pkg:Net", "pkg.modle:Net", "net.py:Net", "train.py:Net", "train:Net"],
)
def test_the_file_of_a_class_is_found(project, run_command, name):
    """`train.py` parses its command line when it is imported, and ends the process."""
    ran = run_command("diff", "runs/old.pth", "-m", name, cwd=project)
    assert ran.code == 2
    assert "did you mean pkg/model.py:Net?" in ran.err
    known = run_command("diff", "runs/old.pth", "-m", "pkg/model.py:Net", "-k", "width=3",
                        cwd=project)  # fmt: skip
    assert known.code == 1
    assert "0.weight" in known.out


def test_a_file_without_a_class_names_its_classes(project, run_command):
    ran = run_command("diff", "runs/old.pth", "-m", "pkg/model.py", cwd=project)
    assert "write pkg/model.py:Net" in ran.err
    ran = run_command("diff", "runs/old.pth", "-m", "pkg.model:NET", cwd=project)
    assert "did you mean 'Net'?" in ran.err


@pytest.mark.parametrize("command", ["convert", "migrate"])
def test_a_destination_without_its_option(project, run_command, command):
    ran = run_command(command, "runs/old.pth", "new.safetensors", cwd=project)
    assert ran.code == 2
    assert "if it is the result, write -o new.safetensors" in ran.err


def test_init_names_the_modules_that_need_arguments(project, run_command):
    """It said of them that none fits, and had not built one."""
    ran = run_command("init", "--dry-run", cwd=project)
    assert "no module of the project fits" not in ran.out
    line = "pkg/model.py:Net: not built: give its arguments in an entry, kwargs = { width = ... }"
    assert line in " ".join(ran.out.split())


@pytest.mark.process
@pytest.mark.parametrize(
    "text",
    ["cfg={'d': 3}", "x='$HOME'", "a'b\"c", "it's!", "back\\slash'", "`id`'", "plain", "a b"],
)
def test_a_quoted_word_is_the_same_in_a_shell(text):
    word = quote_shell(text)
    assert shlex.split(word) == [text]
    echoed = subprocess.run(["/bin/sh", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert echoed.stdout.decode() == text
    assert quote_shell("cfg={'d': 3}") == "\"cfg={'d': 3}\""


def test_the_fields_of_a_config_object_are_listed(project, run_command):
    """`-k cfg='{}'` alone builds the defaults, and then shapes do not match."""
    source = MODEL.replace("width):", "cfg: Config):").replace(
        "width, width", "cfg.width, cfg.width"
    )
    config = "from dataclasses import dataclass\n\n@dataclass\nclass Config:\n    width: int = 5\n"
    (project / "pkg" / "model.py").write_text(config + source)
    words = ("diff", "runs/old.pth", "-m", "pkg.model:Net")
    ran = run_command(*words, cwd=project)
    assert "defaults of `cfg`: width=5 (-k cfg.width=5 sets one)" in ran.err
    assert run_command(*words, "-k", "cfg.width=3", cwd=project).code == 1

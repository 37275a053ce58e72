"""Five models with a policy and locks: a careless change fails the release."""

import os
import re

import pytest
from safetensors.torch import save_file

NETS = """
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.proj = nn.Linear(width, width)


class Decoder(Encoder):
    def __init__(self, length=6):
        super().__init__()
        self.register_buffer("mask", torch.triu(torch.ones(length, length), 1))
        self.register_buffer("bias", -1e9 * torch.eye(4),
                             persistent=False)


class Tagger(Encoder):
    def __init__(self):
        super().__init__()
        self.ids = torch.arange(8)


class Head(Encoder):
    pass


class Table(nn.Embedding):
    def __init__(self):
        super().__init__(4, 2)
"""
NAMES = ("Encoder", "Decoder", "Tagger", "Head", "Table")
CHANGES = {
    "a typo in a path": ("ckptool.toml", "release/decoder", "releese/decoder"),
    "a renamed class": ("nets.py", "class Tagger", "class TokenTagger"),
    "the diagonal of a saved mask": ("nets.py", "length), 1)", "length), 0)"),
    "a mask of another fill": ("nets.py", "-1e9 * torch.eye", "-1e4 * torch.eye"),
    "an attribute that starts at 1": ("nets.py", "arange(8)", "arange(1, 9)"),
    "a mask that is not saved any more": ("nets.py", "length), 1))", "length), 1), False)"),
    "a layer with another width": ("nets.py", "width=8", "width=9"),
    "a lock that is missing": ("ckptool.toml", "Head.lock", "Haed.lock"),
}


@pytest.fixture
def project(tmp_path, run_command):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "release").mkdir()
    namespace: dict[str, object] = {"__name__": "nets"}
    exec(NETS, namespace)
    for name in NAMES:
        state = namespace[name]().state_dict()
        save_file(state, tmp_path / f"release/{name.lower()}.safetensors", {"format": "pt"})
    entry = '[[models]]\npath = "release/{}*"\nmodule = "nets.py:{}"\nagainst = "{}.lock.json"\n'
    text = "".join(entry.format(name.lower(), name, name) for name in NAMES)
    (tmp_path / "ckptool.toml").write_text(f"{text}[require]\nstrict = true\n")
    assert run_command("lock", "--all", cwd=tmp_path).code == 0
    assert run_command("gate", "-q", cwd=tmp_path).code == 0
    return tmp_path


def edit(file, old, new):
    """Replace text in a file, and make it look newer: bytecode is kept by the second and size."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    os.utime(file, (2e9, 2e9))


@pytest.mark.parametrize("name", CHANGES)
def test_a_careless_change_fails_the_release(project, run_command, name):
    file, old, new = CHANGES[name]
    edit(project / file, old, new)
    ran = run_command("gate", cwd=project)
    assert ran.code != 0, ran.out


def test_a_changed_constant_is_accepted_by_the_command_that_the_finding_names(project, run_command):
    """The value of a mask with persistent=False was in no file and in no lock."""
    edit(project / "nets.py", "-1e9 * torch.eye", "-1e4 * torch.eye")
    ran = run_command("gate", "--modules-only", cwd=project)
    assert "CK213" in ran.out
    command = re.search(r"ckptool lock (-m \S+ -o \S+)", " ".join(ran.out.split()))
    assert command is not None
    assert run_command("lock", *command[1].split(), cwd=project).code == 0
    assert run_command("gate", "-q", cwd=project).code == 0


def test_fractions_are_not_in_the_lock(project, run_command):
    """Sines and powers differ in their last bit between machines: a lock must not fail there."""
    net = "class Rotary(Encoder):\n    def __init__(self):\n        super().__init__()\n"
    line = '        self.register_buffer("f", 1 / 10000 ** (torch.arange(8) / 8), False)\n'
    with (project / "nets.py").open("a") as file:
        file.write(net + line)
    assert run_command("lock", "-m", "nets.py:Rotary", "-o", "r.lock.json", cwd=project).code == 0
    lock = (project / "r.lock.json").read_text()
    assert '"constancy": "constant"' in lock
    assert '"value"' not in lock

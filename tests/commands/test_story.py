"""The mask problem as a user has it: from the load that fails to the file that is gated."""

import json
import re
import shlex

import pytest
import torch

BEFORE = """
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Config:
    d_in: int = 3
    context_length: int = 6


class Attention(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.query = nn.Linear(cfg.d_in, cfg.d_in)
        self.key = nn.Linear(cfg.d_in, cfg.d_in)
        self.mask = torch.triu(torch.ones(cfg.context_length, cfg.context_length), 1)

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        tokens = x.shape[1]
        return scores.masked_fill(self.mask.bool()[:tokens, :tokens], -torch.inf)

    def example_inputs(self):
        return torch.linspace(0, 1, 18).reshape(1, 6, 3)
"""
AFTER = re.sub(r"self\.mask = (.*)", r'self.register_buffer("mask", \1)', BEFORE)
CONFIG = """
[[models]]
path = "release/*"
module = "net:Attention"
kwargs = { cfg = { d_in = 4, context_length = 8 } }
inputs = ["float32[1,8,4]"]
against = "attention.lock.json"

[require]
strict = true
safetensors = true
"""
ARGUMENTS = ("-m", "net:Attention", "-k", "cfg.d_in=4", "-k", "cfg.context_length=8")


def make_module(source):
    namespace = {"__name__": "net"}
    exec(compile(source, "net.py", "exec"), namespace)
    return namespace["Attention"](namespace["Config"](d_in=4, context_length=8))


@pytest.fixture
def project(tmp_path):
    torch.manual_seed(0)
    torch.save(make_module(BEFORE).state_dict(), tmp_path / "model.pth")
    (tmp_path / "net.py").write_text(AFTER)
    (tmp_path / "old_net.py").write_text(BEFORE)
    (tmp_path / "release").mkdir()
    return tmp_path


def test_from_the_failing_load_to_the_gated_file_in_six_commands(project, run_command):
    with pytest.raises(RuntimeError, match="Missing key"):
        make_module(AFTER).load_state_dict(torch.load(project / "model.pth"))
    codes = []

    def run(*words):
        ran = run_command(*words, cwd=project)
        assert ran.code != 2, ran.err
        codes.append(ran.code)
        return ran

    # What is wrong, and the command that helps; it is pasted as it stands, but for the name.
    found = json.loads(run("diff", "model.pth", *ARGUMENTS, "--format", "json").out)["findings"]
    fix = next(finding["fix"] for finding in found if finding["code"] == "CK203")
    command = re.search(r"ckptool (migrate [^;`]*)", fix)[1].strip().rstrip(".")
    words = shlex.split(command)
    words[words.index("-o") + 1] = "release/attention.safetensors"
    run(*words)
    (project / "ckptool.toml").write_text(CONFIG)
    old_words = ("--old", "model.pth", "--old-module", "old_net:Attention")
    run("verify", "release/attention.safetensors", *old_words, "--device", "simulated")
    run("lock", "--all")
    run("gate")
    assert codes == [1, 0, 0, 0, 0]

    from safetensors.torch import load_file

    new = make_module(AFTER)
    new.load_state_dict(load_file(project / "release/attention.safetensors"))
    old = make_module(BEFORE)
    old.load_state_dict(torch.load(project / "model.pth"))
    x = torch.rand(2, 8, 4)
    assert torch.equal(new(x), old(x))

    # And the gate stays shut for the next change of the promise, and for a typo.
    (project / "net.py").write_text(AFTER.replace("self.query = nn.Linear", "self.q = nn.Linear"))
    assert run_command("gate", "--modules-only", cwd=project).code == 1
    (project / "net.py").write_text(AFTER)
    (project / "ckptool.toml").write_text(CONFIG.replace("release/*", "releases/*"))
    assert run_command("gate", cwd=project).code == 1

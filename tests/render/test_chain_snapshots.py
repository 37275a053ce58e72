"""What each command of a chain of migrations prints in each format, as it stands in `snapshots/`.

The dates of revisions are those of SOURCE_DATE_EPOCH. What changes is named as in
test_snapshots.py, and the snapshots are written anew in the same way.
"""

import pytest
import torch
from inline_snapshot import external_file
from paths import ROOT
from render.test_snapshots import SNAPSHOTS, SUFFIXES, without_what_changes

CONFIG = '[[models]]\npath = "*"\nmodule = "nets:{name}"\ninputs = ["float32[1,2]"]\n'
NETS = '''"""One class as it was at each of three revisions."""

import torch
from torch import nn


class Net1(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inp = nn.Linear(2, 3)

    def forward(self, x):
        return self.inp(x)


class Net2(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(2, 3)
        self.register_buffer("gain", torch.arange(1.0, 4.0))

    def forward(self, x):
        return self.body(x) * self.gain / self.gain


class Net3(Net2):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0]))
'''
COMMANDS = {
    "revision": ("revision", "-m", "a mask", "--dry-run", "--module", "nets:Net3"),
    "upgrade": ("upgrade", "old.pth", "-o", "new.safetensors"),
    "downgrade": ("downgrade", "head.pth", "-o", "back.pth", "--to", "base"),
    "history": ("history",),
    "current": ("current", "old.pth", "head.pth"),
    "check": ("check",),
    "check-failed": ("check", "--module", "nets:Net3"),
    "gate-chain": ("gate", "old.pth", "--select", "CK87"),
}
MACHINES = {"junit", "github", "gitlab", "sarif"}
"""Formats for findings, which only a check and a gate have."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with two revisions, an old file, and one at the head."""
    from command_runs import run_in_process

    folder = tmp_path_factory.mktemp("chain")
    (folder / "nets.py").write_text(NETS)
    for name, words in (("Net1", ("-m", "the first one")), ("Net2", ("-m", "inp is body"))):
        (folder / "ckptool.toml").write_text(CONFIG.format(name=name))
        options = ("--accept-renames", "--inject", "gain=constructor") if name == "Net2" else ()
        ran = run_in_process("revision", *words, *options, cwd=folder, SOURCE_DATE_EPOCH="0")
        assert ran.code == 0, ran.err
    torch.save({"inp.weight": torch.ones(3, 2), "inp.bias": torch.zeros(3)}, folder / "old.pth")
    ran = run_in_process("upgrade", "old.pth", "-o", "head.pth", cwd=folder)
    assert ran.code == 0, ran.err
    return folder


def list_cases():
    for name in COMMANDS:
        judges = name.partition("-")[0] in {"check", "gate"}
        yield from ((name, form) for form in SUFFIXES if judges or form not in MACHINES)


@pytest.mark.parametrize(("name", "form"), [*list_cases()])
def test_what_is_printed(name, form, run_command, project):
    for written in ("new.safetensors", "back.pth", "back.pth.ckptool.json"):
        (project / written).unlink(missing_ok=True)
    ran = run_command(*COMMANDS[name], "--format", form, cwd=project, SOURCE_DATE_EPOCH="0")
    assert ran.err == ""
    shown = without_what_changes(ran.out, project)
    kept = SNAPSHOTS.with_name("chain_snapshots") / f"{name}.{SUFFIXES[form]}"
    assert shown == external_file(str(kept), format=".txt")


def test_the_snapshots_are_those_of_the_commands():
    folder = ROOT / "tests" / "render" / "chain_snapshots"
    names = {f"{name}.{SUFFIXES[form]}" for name, form in list_cases()}
    assert {path.name for path in folder.iterdir()} == names

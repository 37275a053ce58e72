"""What the new class saves may be an attribute of the pickled module: as `migrate`, so `diff`."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptool


class Old(nn.Module):
    """Positions, running counts and layers as plain attributes."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.pos = torch.randn(1, 2)
        self.counts = torch.zeros(2)
        self.blocks = [nn.Linear(2, 2)]


class New(nn.Module):
    """The same, registered."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.pos = nn.Parameter(torch.randn(1, 2))
        self.register_buffer("counts", torch.zeros(2))
        self.blocks = nn.ModuleList([nn.Linear(2, 2)])


@pytest.fixture
def old(tmp_path, monkeypatch):
    """old.pth, a pickled `Old`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    module = Old()
    module.counts += 3
    torch.save(module, "old.pth")
    return module


def test_the_fix_of_a_missing_tensor_takes_it_from_the_pickled_modules_attributes(old, run_command):
    findings = {f.key: f for f in ckptool.diff("old.pth", module=New).findings}
    missing = {"pos": "CK201", "counts": "CK202"} | dict.fromkeys(
        ("blocks.0.weight", "blocks.0.bias"), "CK201"
    )
    with pytest.raises(RuntimeError) as refused:
        New().load_state_dict(old.state_dict())
    assert {*re.findall(r'"([\w.]+)"', str(refused.value))} == missing.keys()
    assert {key: findings[key].code for key in missing} == missing
    (command,) = {findings[key].fix.partition(": ")[2] for key in missing}
    words = shlex.split(command)[1:]
    words[words.index("-m") + 1] = f"{__file__}:New"
    assert "--inject" not in words
    assert run_command(*words, "--no-config", cwd=Path()).code == 0
    new = New()
    new.load_state_dict(torch.load("old-migrated.pth"))
    assert torch.equal(new.pos, old.pos)
    assert torch.equal(new.counts, old.counts)
    assert torch.equal(new.blocks[0].weight, old.blocks[0].weight)


def test_an_attribute_of_another_shape_is_not_what_is_missing(old):
    old.pos = torch.zeros(5)
    torch.save(old, "old.pth")
    finding = next(f for f in ckptool.diff("old.pth", module=New).findings if f.key == "pos")
    assert str(finding.level) == "error"
    assert "--inject 'pos=file:DONOR#pos'" in finding.fix

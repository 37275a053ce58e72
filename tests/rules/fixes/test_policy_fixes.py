"""Fixes of findings on a policy: done to the command line or the configuration, they go."""

import re
import sys

import pytest
import torch
from command_runs import run_in_process
from rules.fixes.fix_runs import take_command
from torch import nn

LINEAR = ("-m", "torch.nn:Linear", "-k", "in_features=2", "-k", "out_features=3")


@pytest.fixture
def release(tmp_path):
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "model.pth")
    return tmp_path


def configure(release, text: str) -> None:
    (release / "ckptool.toml").write_text(text)


def gate(release, *words: str):
    return run_in_process("gate", *words, cwd=release, PYTHONPATH=":".join(sys.path))


def test_the_module_is_named(release):
    configure(release, "[require]\nstrict = true\n")
    ran = gate(release, "model.pth")
    assert "CK329" in ran.out
    words = take_command(ran.out, "gate")[1:]
    words[words.index("PACKAGE.MODULE:NAME")] = LINEAR[1]
    ran = gate(release, *words, *LINEAR[2:])
    assert (ran.code, "CK329" in ran.out) == (0, False), ran.out


def test_the_input_is_given(release):
    configure(release, '[require]\nverify = ["forward"]\ndevice = "simulated"\n')
    ran = gate(release, "model.pth", *LINEAR)
    assert "CK856" in ran.out
    words = take_command(ran.out, "gate")[1:]
    words[words.index("DTYPE[SHAPE]")] = "float32[4,2]"
    ran = gate(release, *words)
    assert "CK856" not in ran.out


def test_the_usual_place_is_judged(release):
    saved = {"state_dict": {"kernel": torch.ones(3, 2)}, "extra": nn.Linear(2, 3).state_dict()}
    torch.save(saved, release / "model.pth")
    ran = gate(release, "model.pth", *LINEAR)
    assert "CK860" in ran.out
    ran = gate(release, *take_command(ran.out, "gate")[1:])
    assert "CK860" not in ran.out
    assert "kernel" in ran.out


def test_the_size_is_allowed_or_looked_at(release):
    configure(release, '[require]\nmax-size = "1 kB"\n')
    ran = gate(release, "model.pth")
    assert "CK853" in ran.out
    looked = run_in_process(*take_command(ran.out, "inspect"), cwd=release)
    assert looked.code == 0
    assert "weight" in looked.out
    line = re.search(r'max-size = "\d+ B"', ran.out)[0]
    configure(release, f"[require]\n{line}\n")
    assert gate(release, "model.pth").code == 0


ENTRIES = {
    "CK328": '[[models]]\npath = "releese/*"\nmodule = "torch.nn:Linear"\n',
    "CK857": '[[waivers]]\nrule = "CK301"\nreason = "r"\nexpires = 2020-01-31\n',
    "CK858": '[[waivers]]\nrule = "CK301"\nreason = "r"\n',
}


@pytest.mark.parametrize("code", ENTRIES)
def test_an_entry_is_deleted(code, release):
    configure(release, ENTRIES[code])
    ran = gate(release, "model.pth") if code != "CK328" else gate(release)
    assert code in ran.out
    assert re.search(r"[Dd]elete", ran.out)
    configure(release, "")
    assert code not in gate(release, "model.pth").out


def test_modules_are_checked_without_weights(release):
    entry = ENTRIES["CK328"] + "kwargs = {in_features = 2, out_features = 3}\n"
    configure(release, entry)
    ran = gate(release)
    assert "CK328" in ran.out
    ran = gate(release, *take_command(ran.out, "gate")[1:])
    assert "CK328" not in ran.out

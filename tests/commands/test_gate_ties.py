"""A tie in safetensors: one name in the file, which its own loader and the module tie again."""

import json
import shutil

import pytest
import torch
from migration import models
from safetensors.torch import load_model, save_model

POLICY = """
[[models]]
path = "*"
module = "net:New"
inputs = ["int64[2,3]<5"]
[require]
verify = ["load", "forward"]
device = "cpu"
"""


@pytest.fixture
def tied(release):
    shutil.copy(models.__file__, release.folder / "net.py")
    save_model(models.New(), release.folder / "tied.safetensors", {"format": "pt"})
    release.policy(POLICY)
    return release


def test_a_tied_safetensors_is_no_failure(tied):
    assert load_model(models.New(), tied.folder / "tied.safetensors") == (set(), [])
    ran = tied.gate("tied.safetensors", "--format", "json")
    report = json.loads(ran.out)
    assert ran.code == 0
    assert [(f["code"], f["level"]) for f in report["findings"] if f["code"] == "CK501"] == [
        ("CK501", "note")
    ]


def test_diff_and_verify_agree_with_the_gate(tied):
    for command in ("diff", "verify"):
        ran = tied.command(command, "tied.safetensors", cwd=tied.folder)
        assert ran.code == 0
    assert "tied again, as safetensors keeps one name: " in ran.out
    ran = tied.command("diff", "tied.safetensors", "-q", cwd=tied.folder)
    assert ran.out.startswith("loads with safetensors.torch.load_model, which ties `")


def test_a_name_that_a_pth_lacks_still_fails(tied):
    state = models.New().state_dict()
    del state["head.weight"]
    torch.save(state, tied.folder / "lacks.pth")
    assert tied.gate("lacks.pth").code == 1

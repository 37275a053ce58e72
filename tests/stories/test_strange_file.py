"""Look into a strange file, clean it and convert it: three commands, none of them with an error."""

import argparse
import os

import pytest
import torch
from files import same_bits
from safetensors.torch import load_file
from torch import nn


class Payload:
    """What an attacker pickles: loading it runs a command."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def strange(tmp_path):
    """strange.ckpt: a model, its optimizer, a Namespace and a command that loading would run."""
    module = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(3, 8)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "state_dict": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "callback": Payload(str(tmp_path / "ran")),
    }
    torch.save(content, tmp_path / "strange.ckpt")
    return tmp_path / "strange.ckpt"


def test_look_into_clean_and_convert_in_three_commands(tmp_path, strange, run_command):
    looked = run_command("inspect", "strange.ckpt", cwd=tmp_path)
    first_lines = looked.out.splitlines()[:8]
    assert any("refuses posix.system at `callback`" in line for line in first_lines)
    assert looked.out.index("state_dict at") < looked.out.index("optimizer state at")

    cleaned = run_command(
        "convert", "strange.ckpt", "-o", "clean.pt", "--strip", "optimizer", cwd=tmp_path
    )
    assert (cleaned.code, cleaned.err) == (0, "")
    assert "callback" in cleaned.out
    found = torch.load(tmp_path / "clean.pt", weights_only=True)
    assert {*found} == {"epoch", "state_dict", "args"}
    assert (found["epoch"], found["args"]) == (3, {"lr": 0.1})

    converted = run_command(
        *("convert", "clean.pt", "-o", "model.safetensors", "--at", "state_dict"),
        *("--dtype", "bf16"),
        cwd=tmp_path,
    )
    assert (converted.code, converted.err) == (0, "")
    result = load_file(tmp_path / "model.safetensors")
    assert result.keys() == found["state_dict"].keys()
    for key, tensor in found["state_dict"].items():
        expected = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        assert same_bits(result[key], expected)
    assert not (tmp_path / "ran").exists()

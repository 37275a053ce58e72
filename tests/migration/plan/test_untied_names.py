"""A file ties names that the module keeps apart: every container has what the module loads."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ckptool


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(5, 4)
        self.mid = nn.Linear(4, 5, bias=False)
        self.head = nn.Linear(4, 5, bias=False)
        self.mid.weight = self.head.weight = self.emb.weight


class Separate(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(5, 4)
        self.mid = nn.Linear(4, 5, bias=False)
        self.head = nn.Linear(4, 5, bias=False)


class TiedInPart(Separate):
    def __init__(self):
        super().__init__()
        self.head.weight = self.mid.weight


@pytest.mark.parametrize("cls", [Separate, TiedInPart])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_names_that_are_tied_in_the_file_alone_are_all_written(cls, suffix, tmp_path):
    source, target = tmp_path / "tied.pth", tmp_path / f"new.{suffix}"
    torch.save(Tied().state_dict(), source)
    expected = cls()
    expected.load_state_dict(torch.load(source))
    report = ckptool.migrate(source, target, module=cls)
    assert "loads strictly" in report.verdict
    assert ckptool.diff(target, module=cls).verdict.startswith("loads")
    module = cls()
    module.load_state_dict(load_file(target) if suffix == "safetensors" else torch.load(target))
    for key, value in module.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_names_that_the_module_ties_stay_one(suffix, tmp_path):
    source, target = tmp_path / "tied.pth", tmp_path / f"new.{suffix}"
    torch.save(Tied().state_dict(), source)
    report = ckptool.migrate(source, target, module=Tied)
    assert not report.steps
    state = load_file(target) if suffix == "safetensors" else torch.load(target)
    assert len({value.data_ptr() for value in state.values()}) == 1

"""A file with tied weights -> a module in which they are separate; plain torch loads the result."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ckptool


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.head = nn.Linear(6, 10, bias=False)
        self.tail = nn.Linear(6, 10, bias=False)
        self.head.weight = self.tail.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids)) + self.tail(self.embed(ids))


class Separate(Tied):
    def __init__(self):
        super().__init__()
        self.head.weight = nn.Parameter(self.embed.weight.detach().clone())
        self.tail.weight = nn.Parameter(self.embed.weight.detach().clone())


class SeparateEnds(Tied):
    """The ends are tied to each other, and not to the embedding."""

    def __init__(self):
        super().__init__()
        self.head.weight = nn.Parameter(self.embed.weight.detach().clone())
        self.tail.weight = self.head.weight


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("target", [Separate, SeparateEnds])
@pytest.mark.parametrize("place", [None, "model"])
def test_each_name_is_in_the_file_that_a_module_without_ties_loads(tmp_path, suffix, target, place):
    torch.manual_seed(0)
    old = Tied()
    state = old.state_dict()
    torch.save({place: state} if place else state, tmp_path / "old.pth")
    result = tmp_path / f"new.{suffix}"

    report = ckptool.migrate(tmp_path / "old.pth", result, module=target, at=place)

    assert report.exit_code == 0
    loaded = load_file(result) if suffix == "safetensors" else torch.load(result)
    new = target()
    new.load_state_dict(loaded[place] if place and suffix == "pth" else loaded)
    ids = torch.arange(10)
    assert torch.equal(new(ids), old(ids))


def test_a_module_with_the_ties_of_the_file_gets_one_name(tmp_path):
    old = Tied()
    torch.save(old.state_dict(), tmp_path / "old.pth")
    result = tmp_path / "new.safetensors"

    ckptool.migrate(tmp_path / "old.pth", result, module=Tied)

    assert len(load_file(result)) == 1

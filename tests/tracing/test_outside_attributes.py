"""`ckptool run` and tensors that a script sets on instances of torch's own classes."""

import sys

import pytest
import torch
from tracing.conftest import run_traced

pytestmark = pytest.mark.process

SCRIPT = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
model.mask = torch.ones(2)           # the same line sets it again in the next run
model[0].count = torch.zeros(1)      # changes in training
model.seen = None
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(3):
    model(torch.randn(2, 4)).mul(model.mask).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model[0].count += 1
    model.mean = model[0].weight.detach().mean()    # made in training
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "model.pth")
print(model.mask, model[0].count)
"""


def test_only_what_training_changes_is_lost(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    traced = run_traced((sys.executable, "train.py"), folder)
    assert traced.code == 0
    # Of the three, the file has none; a new run makes `mask` again, and nothing else.
    assert {"mask", "0.count", "mean"}.isdisjoint(torch.load(folder / "model.pth")["model"])
    found = {finding["key"]: finding for finding in traced.findings("CK330")}
    assert found.keys() == {"0.count", "mean"}
    assert 'module[0].register_buffer("count"' in found["0.count"]["fix"]


PYTEST = """
import torch
from torch import nn


def test_training(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    model.count = torch.zeros(1)
    torch.optim.SGD(model.parameters(), lr=0.1)
    model.count += 1
    torch.save(model.state_dict(), tmp_path / "model.pth")
"""


def test_pytest_judges_it(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "test_it.py").write_text(PYTEST)
    traced = run_traced((sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"), folder)
    assert [finding["key"] for finding in traced.findings("CK330")] == ["count"]

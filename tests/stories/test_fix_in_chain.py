"""A project with a chain, shards, ties and classes in two files: `fix`, and old files after it."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.process

BLOCKS = """\
from dataclasses import dataclass

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, dim, causal=True):
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        if causal:
            self.mask = torch.tril(torch.ones(dim, dim))
        else:
            self.mask = None

    def forward(self, x):
        x = self.proj(x)
        return x if self.mask is None else x @ self.mask


@dataclass(eq=False)
class Gain(nn.Module):
    dim: int = 4
    scale: float = 2.0

    def __post_init__(self):
        super().__init__()
        self.gain = torch.full((self.dim,), self.scale) if self.scale else None

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.gain is not None:
            self.gain = fn(self.gain)
        return self

    def forward(self, x):
        return x if self.gain is None else x * self.gain
"""
NET = """\
import torch
from torch import nn

from parts.blocks import Block, Gain


class Head(Block):
    def __init__(self, dim):
        super().__init__(dim, causal=False)
        self.mask = torch.eye(dim) * 2


class Net(nn.Module):
    def __init__(self, dim=4, n=3):
        super().__init__()
        self.embed = nn.Linear(dim, dim, bias=False)
        self.blocks = nn.ModuleList()
        for i in range(n):
            self.blocks.append(Block(dim, causal=i % 2 == 0))
        self.gain = Gain()
        self.head = Head(dim)
        self.out = nn.Linear(dim, dim, bias=False)
        self.out.weight = self.embed.weight
        self.cos, self.sin = self.make_tables(dim)
        self.by_name = {"a": torch.ones(dim), "b": torch.zeros(dim)}

    def make_tables(self, dim):
        t = torch.arange(dim, dtype=torch.float32)
        return t.cos(), t.sin()

    @property
    def total(self):
        return self.cos + self.sin

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        x = self.head(self.gain(x))
        return self.out(x) * self.total + self.by_name["a"]
"""
CONFIG = """\
[[models]]
path = "saved"
module = "net:Net"
inputs = ["float32[2,4]"]
"""
RUN = """\
import sys
import torch
from net import Net
from safetensors.torch import load_file

state = torch.load("old.pth")
net = Net().eval()
if sys.argv[1] == "after":
    plain = [k for m in net.modules() for k, v in vars(m).items() if isinstance(v, torch.Tensor)]
    assert plain == [], plain
    torch.compile(Net(), backend="eager").load_state_dict(
        {f"_orig_mod.{key}": value for key, value in state.items()}
    )
    assert {t.device.type for t in Net().to("meta").state_dict().values()} == {"meta"}
net.load_state_dict(state)
torch.save({"output": net(torch.ones(2, 4)), "keys": list(net.state_dict())}, f"{sys.argv[1]}.pt")
"""


@pytest.fixture
def project(tmp_path):
    """Return the folder of a project whose module saved old.pth, and shards with a tied weight."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "parts" / "blocks.py").write_text(BLOCKS)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "ckptool.toml").write_text(CONFIG)
    torch.manual_seed(0)
    linears = {f"{name}.proj": 4 for name in ("blocks.0", "blocks.1", "blocks.2", "head")}
    state = {f"{key}.weight": torch.randn(n, n) for key, n in linears.items()}
    state |= {f"{key}.bias": torch.randn(n) for key, n in linears.items()}
    state["embed.weight"] = torch.randn(4, 4)
    torch.save({**state, "out.weight": state["embed.weight"]}, tmp_path / "old.pth")
    write_shards(tmp_path / "saved", state)
    return tmp_path


def write_shards(folder, state):
    folder.mkdir()
    keys = [*state]
    parts = keys[:4], keys[4:]
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save_file({key: state[key] for key in part}, folder / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def run_module(project, when):
    """Load old.pth into the module in a process of plain torch, and keep its output."""
    subprocess.run([sys.executable, "run.py", when], cwd=project, check=True)


def test_old_files_load_and_compute_the_same_after_fix(project, ckptool):
    run = partial(ckptool, cwd=project)
    assert run("revision", "--message", "first").code == 0
    run_module(project, "before")
    fixed = run("fix", "--write", "--keep-old-files", "-q")
    assert fixed.code == 0, fixed.err
    run_module(project, "after")
    before, after = (torch.load(project / f"{name}.pt") for name in ("before", "after"))
    assert torch.equal(after["output"], before["output"])
    assert {*after["keys"]} - {*before["keys"]} == {"by_name.a", "by_name.b"}

    # The hook gives the parameters of the dict, which have no memory where the result is tried.
    upgraded = run("upgrade", "saved", "-o", "new")
    assert upgraded.code == 0, upgraded.err
    assert "checked: strict load: into net:Net" in upgraded.out
    for path in (project / "saved").glob("*.safetensors"):
        new, old = load_file(project / "new" / path.name), load_file(path)
        assert new.keys() == old.keys()
        assert all(torch.equal(new[key], old[key]) for key in old)
    checked = run("check", "-q")
    assert (checked.code, "no revision covers that" in checked.out) == (1, True)

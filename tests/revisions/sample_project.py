"""A repository whose class went through six revisions, drafted by the command itself."""

import shutil
from pathlib import Path

import torch
from revisions import sample_nets
from revisions.sample_nets import NETS

import ckptool
from ckptool.config import ModelEntry, ProjectConfig, Settings
from ckptool.migration.plan.plan_file import parse_plan

MODULES = "revisions.sample_nets"
INPUTS = ("float32[3,4]",)
SPLIT = parse_plan(
    """
[[ops]]
op = "split"
key = "qkv.weight"
into = ["q.weight", "k.weight", "v.weight"]
sizes = [4, 4, 4]

[[ops]]
op = "split"
key = "qkv.bias"
into = ["q.bias", "k.bias", "v.bias"]
sizes = [4, 4, 4]
"""
)
MESSAGES = (
    "the first one", "inp is body", "mask is a buffer", "qkv is three layers", "scale in float32",
    "unused is dropped",
)  # fmt: skip
OPTIONS = (
    {}, {"accept_renames": True}, {}, {"plan": SPLIT}, {"python": True}, {"drop": ["unused"]},
)  # fmt: skip
FUNCTIONS = '''"""The scale in float32."""


def upgrade(state):
    """Return the state of this revision."""
    state["scale"] = state["scale"].float()
    return state


def downgrade(state):
    """Return the state of the revision before it."""
    state["scale"] = state["scale"].half()
    return state
'''


def configure(folder: Path, module: str, **fields: object) -> ProjectConfig:
    """Return the configuration of a project in `folder` whose only class is `module`."""
    entry = ModelEntry(path="*", module=f"{MODULES}:{module}", inputs=INPUTS, **fields)
    return ProjectConfig(Settings(models=(entry,)), folder, folder / "ckptool.toml")


def build_project(folder: Path, count: int = len(NETS)) -> Path:
    """Draft the first `count` revisions of the sample in `folder`, and return it."""
    for number in range(count):
        config = configure(folder, NETS[number].__name__)
        report = ckptool.revision(MESSAGES[number], config=config, **OPTIONS[number])
        if report.revisions[-1].python:
            name = report.revisions[-1].python
            (folder / "ckpt_migrations" / name).write_text(FUNCTIONS)
    return folder


def copy_project(source: Path, target: Path) -> Path:
    """Return a copy of a project that a test may damage."""
    return Path(shutil.copytree(source, target, dirs_exist_ok=True))


def build_net(number: int) -> torch.nn.Module:
    """Return the class of a revision (from 1) with values of its own."""
    torch.manual_seed(number)
    net = NETS[number - 1]()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter))
        net.scale.copy_(torch.rand(4) + 0.5)
    return net.eval()


def build_tied_net() -> torch.nn.Module:
    torch.manual_seed(3)
    return sample_nets.TiedNet1().eval()


def list_files(folder: Path) -> list[Path]:
    """Return the files of the revisions in order."""
    return sorted((folder / "ckpt_migrations").glob("*.toml"))


def load_into_head(state):
    """Return a module of the newest code that has loaded `state` strictly, by plain torch."""
    module = sample_nets.Net6().eval()
    module.load_state_dict(state)
    return module

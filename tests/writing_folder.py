"""A small project for commands that write: two modules, and a checkpoint of the older one."""

from pathlib import Path

import torch

NET = """
import torch
from torch import nn

class Old(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x)

class Net(Old):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(4))
"""
MODULE = ("-m", "net:Net", "--inject", "mask=constructor")


def write_project(folder: Path) -> None:
    """Write net.py with the modules `Old` and `Net`, and old.pth, a state_dict of `Old`."""
    torch.manual_seed(0)
    (folder / "net.py").write_text(NET)
    state = {"a.weight": torch.randn(4, 4), "a.bias": torch.randn(4)}
    torch.save(state, folder / "old.pth")


def read_all(folder: Path) -> dict[str, bytes | None]:
    """Return each file's content, and None for a folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }

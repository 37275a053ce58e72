"""A folder with checkpoints and a policy of its own, and the gate as a real process in it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from command_runs import Ran
from paths import SAMPLES
from safetensors.torch import save_file
from torch import nn

MODEL = """
[[models]]
path = "*"
module = "torch.nn:Linear"
kwargs = { in_features = 2, out_features = 3 }
"""


@dataclass(frozen=True)
class Release:
    folder: Path
    command: Callable[..., Ran]

    def policy(self, text: str) -> None:
        (self.folder / "ckptool.toml").write_text(text)

    def gate(self, *words: object, **environment: str) -> Ran:
        return self.command("gate", *words, cwd=self.folder, **environment)


@pytest.fixture
def release(tmp_path, run_command):
    """model.pth and model.safetensors of one Linear, and the reference case under reference/."""
    state = nn.Linear(2, 3).state_dict()
    torch.save(state, tmp_path / "model.pth")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "reference").mkdir()
    shutil.copy(SAMPLES / "model.pth", tmp_path / "reference" / "model.pth")
    return Release(tmp_path, run_command)

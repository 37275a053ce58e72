"""The module that a configuration of LightningCLI names is proposed, and never built from it."""

import shlex

import pytest
import torch
from torch import nn

import ckptool
from ckptool.errors import UsageError
from ckptool.loaders.lightning_config import suggest_cli_module

yaml = pytest.importorskip("yaml")

NET = """\
from pathlib import Path

from torch import nn

Path("imported").touch()


class Net(nn.Module):
    def __init__(self, width, name="x"):
        super().__init__()
        self.fc = nn.Linear(width, 2)
"""


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Return a checkpoint as Lightning lays it out, with net.py in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    folder = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    linear = nn.Linear(3, 2).state_dict()
    state_dict = {f"fc.{key}": tensor for key, tensor in linear.items()}
    torch.save({"state_dict": state_dict, "epoch": 1}, folder / "last.ckpt")
    return folder / "last.ckpt"


def write_config(checkpoint, model, **fields):
    config = {"seed_everything": True, "trainer": {"max_epochs": 1}, "model": model, **fields}
    (checkpoint.parents[1] / "config.yaml").write_text(yaml.safe_dump(config))


def test_the_proposed_module_loads_the_file(checkpoint, tmp_path):
    init_args = {"width": 3, "name": "it's"}
    write_config(checkpoint, {"class_path": "net.Net", "init_args": init_args})
    with pytest.raises(UsageError, match=r"is of LightningCLI and names net\.Net") as error:
        ckptool.diff(checkpoint)
    assert not (tmp_path / "imported").exists()
    (name,) = shlex.split(str(error.value).rpartition(" -m ")[2])
    assert ckptool.diff(checkpoint, module=name).verdict == "loads strictly"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"width": 3}, "whose module was built with width: give its class with -m"),
        ({"class_path": "net.Net"}, "if you trust it, -m net:Net"),
        (
            {"class_path": "net.Net", "init_args": {"head": {"class_path": "os.system"}}},
            "names net.Net, built with head: if you trust it, -m net:Net",
        ),
        ({"class_path": "net.Net; import os"}, "give its class with -m"),
    ],
)
def test_what_no_literal_says_is_listed(model, text, checkpoint):
    write_config(checkpoint, model)
    assert text in suggest_cli_module(checkpoint)


def write_doubling_aliases() -> str:
    """Return a configuration of 2 KB whose argument is a list of 10**29 items."""
    lines = ["trainer: {}", "a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    return "\n".join([*lines, "model: {class_path: net.Net, init_args: {x: *a29}}"])


@pytest.mark.parametrize(
    "content",
    [
        write_doubling_aliases(),
        "model: !!python/object/apply:pathlib.Path.touch [imported]",
        "model: {class_path: net.Net}",  # of something else
        "- a list",
        "[" * 100_000,
        "a: &a [*a]\nmodel: 3\ntrainer: 1",
        "\x00",
    ],
)
def test_another_file_says_nothing(content, checkpoint, tmp_path):
    (checkpoint.parents[1] / "config.yaml").write_text(content)
    assert suggest_cli_module(checkpoint) == ""
    assert not (tmp_path / "imported").exists()

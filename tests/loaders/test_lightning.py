"""Lightning's files: arguments of their own, and a class that is suggested and never imported."""

from pathlib import Path

import pytest
import torch
from torch import nn


class Lit(nn.Module):
    def __init__(self, hidden=4, lr=0.1):
        super().__init__()
        self.lr = lr
        self.fc = nn.Linear(hidden, 2)


class LitWithConfig(nn.Module):
    """`save_hyperparameters()` of a constructor with one argument writes its name."""

    def __init__(self, conf):
        super().__init__()
        self.fc = nn.Linear(conf["hidden"], 2)


def save_run(path: Path, module: nn.Module, **fields) -> Path:
    """Write a file with the layout of lightning.Trainer.save_checkpoint (2.x)."""
    base = {"epoch": 1, "global_step": 3, "pytorch-lightning_version": "2.6.0", "callbacks": {},
            "optimizer_states": [], "lr_schedulers": [],
            "state_dict": module.state_dict()}  # fmt: skip
    torch.save({**base, **fields}, path)
    return path


@pytest.mark.parametrize(
    ("module", "name", "fields"),
    [
        (Lit(8), "Lit", {"hparams_name": "kwargs", "hyper_parameters": {"hidden": 8, "lr": 1.0}}),
        (LitWithConfig({"hidden": 8}), "LitWithConfig",
         {"hparams_name": "conf", "hyper_parameters": {"hidden": 8}}),
    ],
)  # fmt: skip
def test_a_module_finds_its_own_arguments(module, name, fields, tmp_path, run_command):
    path = save_run(tmp_path / "run.ckpt", module, **fields)
    # Truth: with the file's arguments, plain torch loads it.
    arguments = fields["hyper_parameters"]
    built = type(module)(arguments) if name == "LitWithConfig" else type(module)(**arguments)
    built.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    result = run_command("diff", str(path), "-m", f"{__name__}:{name}", "--no-config")
    assert result.code == 0, result.err
    assert result.out.startswith("loads strictly")


def test_the_class_in_a_file_is_only_suggested(tmp_path, run_command, monkeypatch):
    (tmp_path / "evil_run.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    parameters = {"hidden": 8, "_class_path": "evil_run.Net"}
    path = save_run(tmp_path / "run.ckpt", Lit(8), hyper_parameters=parameters)
    result = run_command("diff", str(path), "--no-config")
    assert result.code == 2
    assert "refers to evil_run.Net: if you trust it, -m evil_run:Net" in result.err
    assert not (tmp_path / "ran").exists()


def test_a_name_that_is_no_class_is_not_suggested(tmp_path, run_command):
    parameters = {"_class_path": "x; rm -rf /"}
    path = save_run(tmp_path / "run.ckpt", Lit(8), hyper_parameters=parameters)
    assert "rm" not in run_command("diff", str(path), "--no-config").err

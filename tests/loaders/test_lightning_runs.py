"""Checkpoints that Lightning's Trainer writes, against load_from_checkpoint of the same file."""

import argparse
import logging
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip("pytorch_lightning", reason="Lightning is not installed")
callbacks = pytest.importorskip("pytorch_lightning.callbacks")


class Run(pl.LightningModule):
    """What all have in common: a step and an optimizer."""

    def training_step(self, batch, _):
        return self.model(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Plain(Run):
    def __init__(self, hidden=4, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Linear(3, hidden), nn.Linear(hidden, 2))


class OneArgument(Run):
    def __init__(self, conf):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Linear(3, conf["hidden"])


class NamespaceArgument(Run):
    def __init__(self, hparams):
        super().__init__()
        self.save_hyperparameters(hparams)
        self.model = nn.Linear(3, self.hparams.hidden)


class OpenArguments(Run):
    """load_from_checkpoint passes all hyperparameters to a constructor with `**kwargs`."""

    def __init__(self, hidden=4, **kwargs):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Linear(kwargs.get("width", 3), hidden)


class Renaming(Plain):
    """Its hooks change the keys of the file."""

    def on_save_checkpoint(self, checkpoint):
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k.replace("model.", "net."): v for k, v in state.items()}

    def on_load_checkpoint(self, checkpoint):
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k.replace("net.", "model."): v for k, v in state.items()}


class Asking(Plain):
    """Its hook reads something else of the file."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["words"] = ["a"]

    def on_load_checkpoint(self, checkpoint):
        self.words = checkpoint.get("words") or checkpoint["nothing"]


class Partial(Run):
    """The backbone is not saved, and strict loading is off."""

    def __init__(self, hidden=4):
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Linear(3, 3)
        self.model = nn.Linear(3, hidden)
        self.strict_loading = False

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if "backbone" not in key}


class Late(Run):
    """Its layers are built in configure_model()."""

    def __init__(self, hidden=4):
        super().__init__()
        self.save_hyperparameters()
        self.hidden, self.model = hidden, None

    def configure_model(self):
        if self.model is None:
            self.model = nn.Linear(3, self.hidden)


class Data(pl.LightningDataModule):
    """Its state is a state of tensors, too."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(8, 3)), 4)

    def state_dict(self):
        return {"seen": 3, "table": torch.ones(2)}


RUNS = {
    "plain": (lambda: Plain(8), ()),
    "one argument": (lambda: OneArgument({"hidden": 8}), ()),
    "namespace": (lambda: NamespaceArgument(argparse.Namespace(hidden=8)), ()),
    "open arguments": (lambda: OpenArguments(8, width=3), ()),
    "renaming": (lambda: Renaming(8), ()),
    "partial": (lambda: Partial(8), ()),
    "late": (lambda: Late(8), ()),
    "swa": (lambda: Plain(8), (callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=1),)),
    "ema": (lambda: Plain(8), (callbacks.EMAWeightAveraging(decay=0.9),)),
}


def save_run(path: Path, module: Run, used_callbacks=(), **options) -> Path:
    """Train for two epochs, and write the checkpoint as the Trainer does."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, callbacks=[*used_callbacks],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=Data())
        trainer.save_checkpoint(path, **options)
    return path


def load(cls: type, path: Path) -> "Run | None":
    """Return what load_from_checkpoint makes of a file of these tests; None if it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cls.load_from_checkpoint(path, weights_only=False)
    except RuntimeError:
        return None


@pytest.mark.parametrize("name", RUNS)
def test_a_run_loads_as_by_load_from_checkpoint(name, tmp_path, run_command):
    make, used_callbacks = RUNS[name]
    module = make()
    path = save_run(tmp_path / "run.ckpt", module, used_callbacks)
    target = ("-m", f"{__name__}:{type(module).__name__}", "--no-config")
    loaded = load(type(module), path)
    assert loaded is not None
    result = run_command("diff", str(path), *target)
    # The layers that a class leaves out of its state_dict are an error of their own.
    assert result.code == ("will not be saved" in result.out) == (name == "partial")
    assert result.out.startswith(("loads strictly", "loads with load_from_checkpoint()", "loads, "))
    assert "compared at `state_dict`" in result.out
    assert f"{len(loaded.state_dict())} match, 0 missing, 0 unexpected" in result.out

    broken = torch.load(path, weights_only=False)
    broken["state_dict"].popitem()
    torch.save(broken, path)
    is_loaded = load(type(module), path) is not None
    result = run_command("diff", str(path), *target)
    assert is_loaded == (name == "partial")
    assert result.code == 1
    assert "1 missing" in result.out


def test_a_run_of_weights_only_loads_as_well(tmp_path, run_command):
    path = save_run(tmp_path / "run.ckpt", Plain(8), weights_only=True)
    assert load(Plain, path) is not None
    assert run_command("diff", str(path), "-m", f"{__name__}:Plain", "--no-config").code == 0
    assert run_command("verify", str(path), "-m", f"{__name__}:Plain", "--no-config").code in {0, 2}


def test_a_hook_that_reads_more_of_the_file_is_not_checked(tmp_path, run_command):
    path = save_run(tmp_path / "run.ckpt", Asking(8))
    assert load(Asking, path) is not None
    result = run_command("diff", str(path), "-m", f"{__name__}:Asking", "--no-config")
    assert "not checked" in result.out
    assert "on_load_checkpoint() asks for `words`" in " ".join(result.out.split())


def test_an_unnamed_class_is_asked_for_with_its_arguments(tmp_path, run_command):
    path = save_run(tmp_path / "run.ckpt", Plain(8))
    result = run_command("diff", str(path), "--no-config")
    assert result.code == 2
    said = "is a Lightning checkpoint: give its LightningModule, built with its hyper_parameters"
    assert f"{said} (hidden, lr)" in result.err


def test_the_release_is_the_state_dict_and_not_the_data_module(tmp_path, run_command):
    path = save_run(tmp_path / "run.ckpt", Plain(8))
    result = run_command("diff", str(path), "-m", f"{__name__}:Plain", "--no-config")
    fix = " ".join(result.out.split("fix:")[-1].split())
    assert "--at state_dict" in fix
    target = tmp_path / "out.safetensors"
    words = ("--at", "state_dict", "--drop-extra", "--no-config")
    assert run_command("migrate", str(path), "-o", str(target), *words).code == 0


class ConfiguredData(pl.LightningDataModule):
    """Its hyperparameters have the names of the module's, and other values."""

    def __init__(self, hidden=99, batch_size=2):
        super().__init__()
        self.save_hyperparameters(logger=False)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 3)), batch_size=2)


def test_hyperparameters_of_a_datamodule_are_not_the_modules(tmp_path, run_command):
    module = Plain(hidden=5)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(module, datamodule=ConfiguredData())
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    (tmp_path / "config.yaml").write_text(
        "model:\n  class_path: evil.Net\n  init_args:\n    hidden: 77\n"
    )
    saved = torch.load(path, weights_only=True)
    assert saved["datamodule_hyper_parameters"]["hidden"] == 99
    assert Plain.load_from_checkpoint(path).hparams.hidden == 5
    target = ("-m", f"{__name__}:Plain", "--no-config")
    result = run_command("diff", str(path), *target)
    assert result.code == 0, result.out
    assert "were taken from the file: hidden, lr" in result.out
    assert run_command("gate", str(path), *target).code == 0
    result = run_command("diff", str(path), "-m", f"{__name__}:NamespaceArgument", "--no-config")
    assert "datamodule" not in result.out + result.err

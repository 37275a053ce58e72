"""Every container that a state_dict comes in, written by torch and safetensors."""

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from files import save_dcp
from migration.matrix_modules import make_trained_module
from migration.states import SHM
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

StateDict = Mapping[str, Tensor]
EPOCH, LOSS = 7, 0.25


@dataclass(frozen=True)
class Source:
    """How one container is written, and what torch.load gives of a .pth made of it."""

    write: Callable[[Path, nn.Module], object]
    suffix: str = ".pth"
    at: tuple[str, ...] = ()
    """Keys from the root of the file to its state_dict."""
    prefix: str = ""
    """What the keys of the file have before the module's."""
    others: tuple[str, ...] = ()
    """Top-level keys beside the state_dict."""
    is_module: bool = False
    """Whether it is a pickled module, which torch.load(weights_only=True) refuses."""
    stores_one_name: bool = False
    """Whether a tied tensor is stored under one of its names alone."""
    separates_ties: bool = False
    """Whether a tied tensor is stored twice, so that nothing in the file says that it is tied."""


def _save(content: object, path: Path, **how: bool) -> None:
    torch.save(content, path, **how)


def _step(module: nn.Module) -> dict[str, object]:
    """Return the state_dict of an optimizer after a step."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    optimizer.step()
    module.load_state_dict(state)
    return optimizer.state_dict()


def _training(module: nn.Module, **states: object) -> dict[str, object]:
    return {**states, "optimizer": _step(module), "epoch": EPOCH, "best_loss": LOSS}


def _prefixed(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in module.state_dict().items()}


def _write_lightning(path: Path, module: nn.Module) -> None:
    content = {
        "epoch": EPOCH,
        "global_step": 40,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": _prefixed(module, "model."),
        "optimizer_states": [_step(module)],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 1e-3},
    }
    torch.save(content, path)


def _write_two_levels(path: Path, module: nn.Module) -> None:
    checkpoint = {"model": module.state_dict(), "optimizer": _step(module)}
    torch.save({"state": checkpoint, "epoch": EPOCH, "best_loss": LOSS}, path)


def _write_ema(path: Path, module: nn.Module) -> None:
    averaged = {
        key: t * 0.5 if t.is_floating_point() else t for key, t in module.state_dict().items()
    }
    torch.save(_training(module, model=module.state_dict(), ema=averaged), path)


def _without_ties(state: StateDict) -> dict[str, Tensor]:
    """Return the state_dict with the first name of each storage alone, which nothing records."""
    first_names = {t.data_ptr(): key for key, t in reversed(state.items()) if t.numel()}
    return {key: t for key, t in state.items() if first_names[t.data_ptr()] == key}


def _write_shards(folder: Path, state: StateDict, stem: str, suffix: str) -> None:
    """Write two shards and an index, named as transformers names them."""
    folder.mkdir()
    keys, weight_map = list(state), {}
    for number, shard_keys in enumerate((keys[:3], keys[3:]), 1):
        name = f"{stem}-{number:05}-of-00002.{suffix}"
        shard = {key: state[key] for key in shard_keys}
        if suffix == "safetensors":
            save_file(shard, folder / name, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / name)
        weight_map |= dict.fromkeys(shard_keys, name)
    nbytes = sum(t.nbytes for t in state.values())
    index = {"metadata": {"total_size": nbytes}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def _write_dcp(path: Path, content: dict[str, object]) -> None:
    save_dcp(content, path)


def _write_torchscript(path: Path, module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), path)


_TRAINING = ("optimizer", "epoch", "best_loss")
_LIGHTNING = (
    "epoch", "global_step", "pytorch-lightning_version", "optimizer_states", "lr_schedulers",
    "hyper_parameters",
)  # fmt: skip

SOURCES = {
    "plain": Source(lambda path, m: _save(m.state_dict(), path)),
    "pre-1.6": Source(
        lambda path, m: _save(m.state_dict(), path, _use_new_zipfile_serialization=False)
    ),
    "pre-1.6 nested": Source(
        lambda path, m: _save(
            _training(m, model=m.state_dict()), path, _use_new_zipfile_serialization=False
        ),
        at=("model",),
        others=_TRAINING,
    ),
    "nested": Source(
        lambda path, m: _save(_training(m, model=m.state_dict()), path),
        at=("model",),
        others=_TRAINING,
    ),
    "nested twice": Source(_write_two_levels, at=("state", "model"), others=("epoch", "best_loss")),
    "Lightning": Source(
        _write_lightning, ".ckpt", at=("state_dict",), prefix="model.", others=_LIGHTNING
    ),
    "DDP": Source(lambda path, m: _save(_prefixed(m, "module."), path), prefix="module."),
    "compiled": Source(
        lambda path, m: _save(_prefixed(m, "_orig_mod."), path), prefix="_orig_mod."
    ),
    "compiled DDP": Source(
        lambda path, m: _save(_prefixed(m, "_orig_mod.module."), path), prefix="_orig_mod.module."
    ),
    "EMA beside raw": Source(_write_ema, at=("model",), others=("ema", *_TRAINING)),
    "whole module": Source(lambda path, m: _save(m, path), is_module=True),
    "whole module beside None": Source(
        lambda path, m: _save({"epoch": EPOCH, "ema": None, "optimizer": None, "model": m}, path),
        at=("model",),
        others=("epoch", "ema", "optimizer"),
        is_module=True,
    ),
    "safetensors": Source(
        lambda path, m: save_model(m, path), ".safetensors", stores_one_name=True
    ),
    "safetensors shards": Source(
        lambda path, m: _write_shards(path, _without_ties(m.state_dict()), "model", "safetensors"),
        "",
        stores_one_name=True,
    ),
    "torch shards": Source(
        lambda path, m: _write_shards(path, m.state_dict(), "pytorch_model", "bin"),
        "",
        separates_ties=True,
    ),
    "DCP": Source(lambda path, m: _write_dcp(path, dict(m.state_dict())), "", separates_ties=True),
    "DCP nested": Source(
        lambda path, m: _write_dcp(path, {"model": m.state_dict(), "epoch": EPOCH}),
        "",
        at=("model",),
        others=("epoch",),
        separates_ties=True,
    ),
    "TorchScript": Source(_write_torchscript, ".pt"),
}

_FOLDER = tempfile.TemporaryDirectory(dir=SHM)


def write_source(name: str, tied: bool, changed: bool = False) -> Path:
    """Write one source of the trained module, once, and return its path.

    With `changed`, the last element of one weight is another number.
    """
    return _write_source(name, tied, changed)


@cache  # Of positional arguments alone: it tells `tied=True` from `True`.
def _write_source(name: str, tied: bool, changed: bool) -> Path:
    module = make_trained_module(tied)
    if changed:
        with torch.no_grad():
            module.head.weight[-1, -1] += 1
    variant = f"{'tied' if tied else 'untied'}, {'changed' if changed else 'as it is'}"
    path = Path(_FOLDER.name) / variant / f"{name}{SOURCES[name].suffix}"
    path.parent.mkdir(exist_ok=True)
    SOURCES[name].write(path, module)
    return path

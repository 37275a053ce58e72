"""A pickled optimizer, or a scheduler with one: named and judged as its state_dict()."""

from pathlib import Path
from typing import Any

import pytest
import torch
from files import describe, save

import ckptool


def _train(build: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    module = torch.nn.Linear(2, 3)
    optimizer = build(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return module, optimizer


OPTIMIZERS = {
    "Adam": torch.optim.Adam,
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def _list_tensors(state_dict: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {
        f"state.{number}.{name}": value
        for number, values in state_dict["state"].items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("legacy", [False, True])
def test_its_tensors_have_the_names_of_its_state_dict(name: str, legacy: bool, tmp_path: Path):
    module, optimizer = _train(OPTIMIZERS[name])
    content = {"model": module.state_dict(), "optimizer": optimizer}
    path = save(tmp_path / "a.pt", content, _use_new_zipfile_serialization=not legacy)
    states = {state.at: state for state in describe(path).states}
    loaded = torch.load(path, weights_only=False)["optimizer"].state_dict()
    assert (states.keys(), states["optimizer"].role) == ({"model", "optimizer"}, "optimizer")
    expected = {key: tuple(tensor.shape) for key, tensor in _list_tensors(loaded).items()}
    found = {key: tensor.shape for key, tensor in states["optimizer"].tensors.items()}
    assert {key: shape for key, shape in found.items() if key.startswith("state.")} == expected
    assert ckptool.inspect(path).checkpoints[0].parameters == sum(
        p.numel() for p in module.parameters()
    )


@pytest.mark.parametrize("with_scheduler", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_converted_with_its_values(name: str, with_scheduler: bool, tmp_path: Path) -> None:
    _, optimizer = _train(OPTIMIZERS[name])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    content: Any = scheduler if with_scheduler else optimizer
    path = save(tmp_path / "a.pt", content)
    ckptool.convert(path, tmp_path / "b.pth")
    plain = torch.load(tmp_path / "b.pth", weights_only=True)
    plain = plain["optimizer"] if with_scheduler else plain
    values = [t for state in plain["state"].values() for t in state.values() if t is not None]
    expected = [t for state in optimizer.state.values() for t in state.values() if t is not None]
    assert len(values) == len(expected)
    assert all(map(torch.equal, values, expected))
    groups = zip(plain["param_groups"], optimizer.param_groups, strict=True)
    assert all(a["lr"] == b["lr"] for a, b in groups)

"""A module with several TorchScript types of one class, and what saves it as a program."""

from pathlib import Path

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.fc = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.fc(x))
        return y * self.factor + y


class Network(nn.Module):
    """Two instances of one class that TorchScript gives a type each, and a head of three types."""

    def __init__(self, factors: tuple[int, int] = (2, 3)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = map(Block, factors)
        self.second.load_state_dict(self.first.state_dict())
        self.head = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(x) + self.second(2 * x))


def freeze(module: nn.Module, path: Path) -> None:
    torch.jit.freeze(torch.jit.script(module.eval())).save(path)


WRITERS = {
    "script": lambda module, path: torch.jit.script(module).save(path),
    "trace": lambda module, path: torch.jit.trace(module, torch.ones(1, 2)).save(path),
    "freeze": freeze,
    "export": lambda module, path: torch.export.save(
        torch.export.export(module, (torch.ones(1, 2),)), path
    ),
}

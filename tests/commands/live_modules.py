"""Modules whose buffers older files lack, each built in another way."""

from types import SimpleNamespace

import torch
from torch import nn


def causal_mask(size: int) -> torch.Tensor:
    return torch.triu(torch.ones(size, size), 1)


class Block(nn.Module):
    """Its mask is a buffer that older files lack."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.l = nn.Linear(size, size)
        self.register_buffer("mask", causal_mask(size))
        self.register_buffer("scale", torch.full((2,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.l(x) * self.mask.sum() * self.scale.sum()


class NeedsSize(Block):
    def __init__(self, size: int) -> None:
        super().__init__(size)


class StoresSize(NeedsSize):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class StoresConfig(NeedsSize):
    def __init__(self, cfg: SimpleNamespace) -> None:
        super().__init__(cfg.size)
        self.cfg = cfg


class Outer(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(depth))
        self.fill()

    def fill(self) -> None:
        self.register_buffer("table", torch.arange(5.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x + self.table.sum()


class Base(nn.Module):
    """Another class replaces the method that gives the masks."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.masks()

    def masks(self) -> None:
        for part in self.parts:
            part.tril = causal_mask(4)


class Replaces(Base):
    def masks(self) -> None:
        for part in self.parts:
            part.register_buffer("tril", causal_mask(4))


class Restates(Base):
    """Runs the replaced method by the name of its class, after construction as well."""

    def masks(self) -> None:
        for part in self.parts:
            part.register_buffer("tril", causal_mask(4))

    def restore(self) -> None:
        Base.masks(self)


class Drawn(Block):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.rand(3))


def make_local() -> nn.Module:
    class Local(Block):
        pass

    return Local()

"""Modules as they are trained, each with one way to keep state."""

from typing import ClassVar

import numpy as np
import torch
from torch import nn


class Statistics:
    """A running mean as people write it themselves."""

    def __init__(self):
        self.mean = torch.zeros(2)
        self.count = 0


class Trained(nn.Module):
    """Keeps state in every way, and changes each of them in forward."""

    def __init__(self, size=4):
        super().__init__()
        self.body = nn.Linear(size, size)
        self.norm = nn.BatchNorm1d(size)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("ema", torch.zeros(size), persistent=False)
        self.table = torch.ones(size)
        self.center = torch.zeros(size)
        self.scales = np.ones(3)
        self.parts = [torch.zeros(2), torch.zeros(2)]
        self.statistics = Statistics()
        self.ready = False
        self.steps = 0
        self.name = "trained"
        self.cache = None

    def forward(self, x):
        self.ready = True
        self.steps += 1
        self.seen += 1
        self.ema.mul_(0.9).add_(x.detach().mean(0))
        self.center = self.center + 1
        self.scales *= 2
        self.parts[1] = self.parts[1] + 1
        self.statistics.mean += 1
        self.statistics.count += 1
        self.cache = x.detach()
        return self.norm(self.body(x)) * self.table


class Registered(nn.Module):
    """All that changes is a parameter or a buffer."""

    def __init__(self, size=4):
        super().__init__()
        self.body = nn.Linear(size, size)
        self.norm = nn.BatchNorm1d(size)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.steps += 1
        return self.norm(self.body(x))


class NeedsSize(nn.Module):
    """Its constructor has an argument that it does not keep."""

    def __init__(self, size):
        super().__init__()
        self.body = nn.Linear(size, size)
        self.mask = torch.ones(size)


class Decaying(nn.Module):
    """Has a plain number from outside, and a flag of its own."""

    def __init__(self, size, decay):
        super().__init__()
        self.body = nn.Linear(size, size)
        self.decay = decay
        self.ready = False

    def forward(self, x):
        self.ready = True
        return self.body(x) * self.decay


class WithOptions(nn.Module):
    """Every argument of its constructor has a default."""

    def __init__(self, size=3, decay=0.99):
        super().__init__()
        self.inner = Decaying(size, decay)


class LargeByDefault(nn.Module):
    """What no arguments build is another module than this one, and a larger one."""

    devices: ClassVar[list[str]] = []

    def __init__(self, size=64):
        super().__init__()
        self.body = nn.Linear(size, size)
        self.devices.append(self.body.weight.device.type)


class WithConfig(NeedsSize):
    """Keeps its arguments, as transformers' models do."""

    def __init__(self, config):
        super().__init__(config["size"])
        self.config = config


class WithHparams(NeedsSize):
    """Keeps its arguments, as Lightning's modules do."""

    def __init__(self, size):
        super().__init__(size)
        self.hparams = {"size": size, "other": 1}


class Counting(nn.Module):
    """Its counter is in its extra state: a load brings it back."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.count = 0

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]


class Drawn(nn.Module):
    """Draws what it does not save."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.projection = torch.randn(2, 2)


class Hidden(nn.Module):
    """Holds its layers in a list."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.layers = [nn.Linear(2, 2)]


def train(model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).pow(2).sum().backward()
        optimizer.step()

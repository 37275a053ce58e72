"""Random generators of all kinds: of a loader, an object, a module, and one that is used once."""

import os
import random
import sys

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.noise = np.random.default_rng(3)

    def forward(self, x):
        return self.linear(x + torch.tensor(self.noise.normal(size=2), dtype=x.dtype))


class Augment:
    def __init__(self, seed):
        self.rng = random.Random(seed)

    def __call__(self, x):
        return x * self.rng.random()


def main():
    torch.manual_seed(0)
    once = torch.Generator().manual_seed(42)
    data, _ = random_split(TensorDataset(torch.arange(16.0).reshape(8, 2)), [6, 2], generator=once)
    order = torch.Generator().manual_seed(1)
    loader = DataLoader(data, batch_size=2, shuffle=True, generator=order)
    augment = Augment(0)
    net = Net()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    first = 0
    if sys.argv[1:]:
        ck = torch.load(sys.argv[1], weights_only=False)
        net.load_state_dict(ck["model"])
        opt.load_state_dict(ck["opt"])
        first = ck["epoch"] + 1
        if "order" in ck:
            order.set_state(ck["order"])
        if "augment" in ck:
            augment.rng.setstate(ck["augment"])
        if "noise" in ck:
            net.noise.bit_generator.state = ck["noise"]
    for epoch in range(first, 3):
        for (x,) in loader:
            opt.zero_grad()
            net(augment(x)).square().mean().backward()
            opt.step()
        states = {
            "order": order.get_state(),
            "augment": augment.rng.getstate(),
            "noise": net.noise.bit_generator.state,
        }
        extra = states if "SAVES_GENERATORS" in os.environ else {}
        torch.save(
            {"model": net.state_dict(), "opt": opt.state_dict(), "epoch": epoch, **extra},
            f"e{epoch}.pt",
        )


main()

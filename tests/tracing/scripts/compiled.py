"""torch.compile: the wrapper's names in the file, and a load without them into another wrapper."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.scale = torch.ones(4)
        self.steps = 0

    def forward(self, x):
        return self.body(x * self.scale)


def main():
    torch.manual_seed(0)
    model = torch.compile(Net(), backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
        model.scale *= 0.5
        model.steps += 1
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "compiled.pt")
    print(Net().load_state_dict(torch.load("compiled.pt")["model"], strict=False))
    in_place = Net()
    in_place.compile(backend="eager")
    in_place(torch.ones(2, 4))
    names = {k.removeprefix("_orig_mod."): v for k, v in torch.load("compiled.pt")["model"].items()}
    print(in_place.load_state_dict(names))


main()

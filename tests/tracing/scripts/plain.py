"""A plain loop: a checkpoint each epoch, resumed by --resume; the scheduler is forgotten."""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--resume")
parser.add_argument("--epochs", type=int, default=3)
arguments = parser.parse_args()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.mean = torch.zeros(4)
        self.steps = 0

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
            self.steps += 1
        return self.linear(x - self.mean)


torch.manual_seed(0)
model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
first = 0
if arguments.resume:
    checkpoint = torch.load(arguments.resume)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    first = checkpoint["epoch"] + 1
for epoch in range(first, arguments.epochs):
    for step in range(4):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(epoch * 10 + step))
        loss = (model(inputs) - inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step()
    print(epoch, loss.item(), torch.rand(1).item(), flush=True)
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch},
        f"epoch{epoch}.pt",
    )

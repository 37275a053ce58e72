"""A loader with a state of its own, as torchdata's StatefulDataLoader; saved and loaded again."""

import sys

import torch
from torch import nn


class StatefulLoader:
    def __init__(self, data, batch):
        self.data, self.batch, self.position, self.epoch = data, batch, 0, 0
        self.order = None

    def state_dict(self):
        return {"position": self.position, "epoch": self.epoch, "order": self.order}

    def load_state_dict(self, state):
        self.position, self.epoch, self.order = state["position"], state["epoch"], state["order"]

    def __iter__(self):
        while True:
            if self.order is None:
                self.order = torch.randperm(
                    len(self.data), generator=torch.Generator().manual_seed(self.epoch)
                )
            while self.position < len(self.data):
                rows = self.order[self.position : self.position + self.batch]
                self.position += self.batch
                yield self.data[rows]
            self.position, self.order, self.epoch = 0, None, self.epoch + 1


torch.manual_seed(0)
loader = StatefulLoader(torch.randn(20, 4), 3)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
step = 0
if "--resume" in sys.argv:
    state = torch.load("s.pt")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    loader.load_state_dict(state["loader"])
    step = state["step"]
for batch in loader:
    optimizer.zero_grad()
    model(batch).pow(2).mean().backward()
    optimizer.step()
    step += 1
    if step == 10:
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "loader": loader.state_dict(),
                "step": step,
            },
            "s.pt",
        )
    if step == 20:
        break
torch.save(model.state_dict(), "end.pt")
print(f"{model.weight.sum().item():.6f}")

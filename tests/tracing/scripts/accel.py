"""accelerate: save_state and load_state; a custom object was never registered."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.scale = torch.ones(1)

    def forward(self, x):
        return self.linear(x) * self.scale


class Curriculum:
    """Difficulty of the data; has a state_dict, and nobody calls it."""

    def __init__(self):
        self.level = 1

    def state_dict(self):
        return {"level": self.level}

    def load_state_dict(self, state):
        self.level = state["level"]


accelerator = Accelerator(cpu=True)
set_seed(0)
model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
curriculum = Curriculum()
model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
for _ in range(3):
    loss = model(torch.randn(8, 4)).square().mean()
    accelerator.backward(loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    curriculum.level += 1
    model.scale *= 0.9
accelerator.save_state("state")
accelerator.load_state("state")
print(loss.item(), model.scale.item(), torch.rand(1).item())

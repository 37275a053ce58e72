"""DistributedDataParallel on gloo: rank 0 saves, all load into a module of another head."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank = dist.get_rank()


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, classes)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.head(self.body(x))


torch.manual_seed(0)
model = DistributedDataParallel(Net(2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    loss = model(torch.randn(8, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
if rank == 0:
    torch.save(model.module.state_dict(), "ddp.pt")
    print(loss.item())
dist.barrier()
state = torch.load("ddp.pt")
other = Net(2)
result = other.load_state_dict(
    {f"module.{key}": value for key, value in state.items()}, strict=False
)
total = other(torch.ones(1, 4)).sum().item()
if rank == 0:
    print(len(result.missing_keys), os.environ["WORLD_SIZE"], total)
dist.destroy_process_group()

"""DDP on gloo that resumes from the checkpoint of rank 0; `mean` is a plain attribute."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 2)
        self.mean = torch.zeros(4)

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return self.body(x - self.mean)


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    net, first = Net(), 0
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if sys.argv[1:]:
        checkpoint = torch.load(sys.argv[1])
        net.load_state_dict(checkpoint["model"])
        first = checkpoint["epoch"] + 1
    for epoch in range(first, 3):
        optimizer.zero_grad()
        model(torch.full((2, 4), epoch + 1 + 0.1 * dist.get_rank())).square().mean().backward()
        optimizer.step()
        if dist.get_rank() == 0:
            torch.save({"model": net.state_dict(), "epoch": epoch}, f"epoch{epoch}.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

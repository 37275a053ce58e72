"""FullyShardedDataParallel (FSDP1) on gloo with two processes, with a full state_dict."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullStateDictConfig, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.head(self.body(x))


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = FSDP(Net(), device_id=torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        model(torch.full((2, 4), float(step))).square().mean().backward()
        optimizer.step()
    with FSDP.state_dict_type(
        model, StateDictType.FULL_STATE_DICT, FullStateDictConfig(rank0_only=True)
    ):
        state = model.state_dict()
    if dist.get_rank() == 0:
        torch.save({"model": state}, "whole.pt")
    dist.barrier()
    plain = Net()
    result = plain.load_state_dict(torch.load("whole.pt")["model"])
    if dist.get_rank() == 0:  # Lines of two ranks may be written into one another.
        print(result, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""FSDP2 on gloo with two processes: one file of the whole state, and a sharded checkpoint."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.scale = torch.ones(4)
        self.seen = 0

    def forward(self, x):
        self.scale = self.scale * 0.9
        self.seen += len(x)
        return self.head(self.body(x * self.scale))


def main():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = Net()
    fully_shard(model.body, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        x = torch.full((2, 4), float(step + dist.get_rank()))
        model(x).square().mean().backward()
        optimizer.step()
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    dcp.save(state, checkpoint_id="sharded")
    whole = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if dist.get_rank() == 0:
        torch.save(whole, "whole.pt")
    dist.barrier()
    other = Net()
    fully_shard(other.body, mesh=mesh)
    fully_shard(other, mesh=mesh)
    target = {"model": get_model_state_dict(other)}
    dcp.load(target, checkpoint_id="sharded")
    set_model_state_dict(other, target["model"])
    total = sum(p.full_tensor().double().sum().item() for p in other.parameters())
    if dist.get_rank() == 0:
        print(f"{total:.12f} {model.seen}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

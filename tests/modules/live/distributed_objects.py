"""Live modules on two ranks of gloo, and what ckptool says of them; rank 0 prints JSON."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

import ckptool

WHOLE = StateDictOptions(full_state_dict=True)


def build_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


def wrap(how):
    if how == "ddp":
        return nn.parallel.DistributedDataParallel(build_net())
    if how == "fully_shard":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        module = build_net()
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
        return module
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(build_net(), device_id=torch.device("cpu"))


def ask(function):
    try:
        report = function()
    except ckptool.CkptoolError as error:
        return f"{type(error).__name__}: {error}"
    return getattr(report, "verdict", "") or report.checkpoints[0].digest


def gather(module):
    state = get_model_state_dict(module, options=WHOLE)
    return {key: value.tolist() for key, value in state.items()}


def main(how, path):
    rank = int(os.environ["RANK"])
    meeting = f"file://{path}.rendezvous"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    module = wrap(how)
    plain = build_net().state_dict()
    other = {key: value + 1 for key, value in plain.items()}
    equal_file, other_file = Path(f"{path}-equal.pth"), Path(f"{path}-other.pth")
    if not dist.get_rank():
        torch.save(plain, equal_file)
        torch.save(other, other_file)
    dist.barrier()
    answers = {
        "digest": ask(lambda: ckptool.digest(module)),
        "file": ckptool.digest(equal_file).checkpoints[0].digest,
        "equal": ask(lambda: ckptool.diff(module, equal_file)),
        "other": ask(lambda: ckptool.diff(module, other_file)),
        "two": ask(lambda: ckptool.diff(module, module)),
        "gathered": ask(lambda: ckptool.digest(get_model_state_dict(module, options=WHOLE))),
        "load": ask(lambda: ckptool.load(module, other_file)),
        "loaded": gather(module) == {key: value.tolist() for key, value in other.items()},
    }
    if how != "ddp":
        set_model_state_dict(module, dict(ckptool.tensors(other_file)), options=WHOLE)
        answers["as advised"] = gather(module) == {k: v.tolist() for k, v in other.items()}
    if not dist.get_rank():
        sys.stdout.write(json.dumps(answers))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

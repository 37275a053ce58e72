"""Write the samples' checkpoints: `python -m samples.make` gives the same bytes every time.

`torch.save` names the top folder of its zip after the file, so a sample keeps its name.
"""

import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from samples.attention import CausalAttentionWithBuffer, CausalAttentionWithoutBuffers

HERE = Path(__file__).parent
ARGUMENTS = {"d_in": 3, "d_out": 2, "context_length": 6, "dropout": 0.0, "qkv_bias": False}


def pair() -> tuple[CausalAttentionWithoutBuffers, CausalAttentionWithBuffer]:
    """Return both versions as the reference case builds them: one seed, one after the other.

    Every 1 of their masks is then changed to 2: one change is saved, the other is lost.
    """
    torch.manual_seed(123)
    without = CausalAttentionWithoutBuffers(**ARGUMENTS)
    with_buffer = CausalAttentionWithBuffer(**ARGUMENTS)
    without.mask *= 2
    with_buffer.mask *= 2
    return without, with_buffer


def with_prefix(state: dict[str, torch.Tensor], prefix: str) -> "OrderedDict[str, torch.Tensor]":
    return OrderedDict((prefix + key, value) for key, value in state.items())


def lightning(module: nn.Module) -> dict[str, Any]:
    """Return what a Lightning run with DistributedDataParallel leaves behind."""
    return {
        "epoch": 3,
        "global_step": 400,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": with_prefix(module.state_dict(), "module."),
        "hyper_parameters": ARGUMENTS,
    }


def training(module: nn.Module) -> dict[str, Any]:
    """Return what a training script saves: the state, the optimizer's state, the epoch."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    module(torch.ones(1, 6, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 7,
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best_loss": 0.25,
    }


def write(folder: Path) -> None:
    """Write all samples into `folder`."""
    # MKL, which reads it at its first call, rounds alike on every processor.
    os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
    without, with_buffer = pair()
    torch.save(without.state_dict(), folder / "model.pth")
    torch.save(with_buffer.state_dict(), folder / "buffer.pth")
    save_file(with_buffer.state_dict(), folder / "buffer.safetensors", metadata={"format": "pt"})
    torch.save(without, folder / "whole.pth")
    torch.save(lightning(with_buffer), folder / "lightning.ckpt")
    torch.save(training(with_buffer), folder / "training.pth")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)

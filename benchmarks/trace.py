"""Time of a small training loop under the trace of `ckptool run` against the same without: a ratio.

    python benchmarks/trace.py [BLOCKS]

A round builds a module, trains it for 200 steps, and saves a checkpoint. Blocks of rounds with and
without the trace alternate within one process, so that both meet the same machine; the medians of
their processor seconds are compared. What comes at the start of a trace, the first searches for
objects with a state_dict, is printed by itself.
"""

import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from ckptool.tracing.process_trace import trace_process
from ckptool.tracing.record_files import RecordWriter


class Net(nn.Module):
    """A few layers, with an attribute and a counter that no state_dict contains."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*[nn.Linear(128, 128) for _ in range(8)])
        self.mask = torch.ones(128, 128)
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return self.body(x @ self.mask)


def train(folder: Path) -> float:
    """Train for one round, and return its processor seconds."""
    start = time.process_time()
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(200):
        optimizer.zero_grad()
        model(torch.randn(64, 128)).square().mean().backward()
        optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / "last.pt")
    return time.process_time() - start


def main() -> None:
    """Print the median seconds of a round without and with the trace, and their ratio."""
    blocks = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    torch.set_num_threads(1)
    times: dict[bool, list[float]] = {False: [], True: []}
    begun: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder)  # what torch itself imports at the first step
        for _ in range(blocks):
            for is_traced in (False, True):
                with trace_process(RecordWriter(name)) if is_traced else nullcontext():
                    begun[is_traced].append(train(folder) + train(folder))
                    times[is_traced] += [train(folder) for _ in range(5)]
    once = statistics.median(begun[True]) - statistics.median(begun[False])
    plain, traced = (statistics.median(times[key]) for key in (False, True))
    print(f"200 steps and a checkpoint: {plain:.3f} s, traced {traced:.3f} s, {traced / plain:.3f}")
    print(f"at the start of a trace: {once:.2f} s")


if __name__ == "__main__":
    main()

"""Time of small training loops under `ckptool run` against the same without: ratios.

    python benchmarks/traced_run.py [REPEATS]

The loop builds a module, trains it, and saves a checkpoint each epoch; each process prints the
time of its loop alone and of the whole script after the import of torch. Runs are interleaved;
the least counts. Processor time is measured: other work on the machine does not count.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ckptool.tracing.traced_command import build_environment

SCRIPT = """
import time
import torch
from torch import nn
start = time.process_time()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*[nn.Linear(128, 128) for _ in range(8)])
        self.mask = torch.ones(128, 128)
        self.steps = 0

    def forward(self, x):
        self.steps += 1
        return self.body(x @ self.mask)


torch.manual_seed(0)
torch.set_num_threads(1)
model = Net()
optimizer = torch.optim.AdamW(model.parameters())
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
for epoch in range(10):
    for _ in range(200):
        optimizer.zero_grad()
        model(torch.randn(64, 128)).square().mean().backward()
        optimizer.step()
    scheduler.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")
print(time.process_time() - start)
"""


def measure(folder: Path, *, traced: bool) -> float:
    """Return the processor seconds of one run of the loop."""
    with tempfile.TemporaryDirectory() as records:
        environment = build_environment(records) if traced else dict(os.environ)
        done = subprocess.run(
            [sys.executable, "script.py"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    return float(done.stdout)


def main() -> None:
    """Print the least seconds without and with the trace, and their ratio."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "script.py").write_text(SCRIPT)
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(repeats):
            for traced in (False, True):
                times[traced].append(measure(folder, traced=traced))
    plain, traced = (min(times[key]) for key in (False, True))
    print(
        f"2,000 steps, 10 checkpoints: {plain:.2f} s, traced {traced:.2f} s, {traced / plain:.3f}"
    )


if __name__ == "__main__":
    main()

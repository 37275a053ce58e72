"""How each command grows with the number of tensors: time and memory of the whole process.

    python benchmarks/growth.py [--counts 10000,30000,100000] [--rounds 3] [FOLDER]

Makes small tensors in many numbers in a temporary folder, and removes them. The best of the rounds
counts for time, the most for memory, which is all that was resident at once. What grows faster than
the number of tensors has a step in it that should not be there.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAKE = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
folder, count = Path(sys.argv[1]), int(sys.argv[2])
keys = [f"model.layers.{n // 10}.block{n % 10}.attention.weight" for n in range(count)]
state = {key: torch.full((4,), float(n)) for n, key in enumerate(keys)}
torch.save(state, folder / "old.pth")
save_file(state, folder / "old.safetensors", {"format": "pt"})
state[keys[count // 2]][-1] += 1
torch.save(state, folder / "new.pth")
names = range(count // 3)
moments = {
    n: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(4, 4), "exp_avg_sq": torch.zeros(4, 4)}
    for n in names
}
groups = [{"lr": 1e-3, "betas": (0.9, 0.999), "params": list(names)}]
torch.save({"optimizer": {"state": moments, "param_groups": groups}}, folder / "training.pth")
"""
CKPTOOL = [sys.executable, "-m", "ckptool"]
TASKS = {
    "inspect, .pth": ["inspect", "old.pth"],
    "inspect, .safetensors": ["inspect", "old.safetensors"],
    "inspect, an optimizer's state": ["inspect", "training.pth"],
    "inspect --format json": ["inspect", "old.pth", "--format", "json"],
    "inspect -v": ["inspect", "old.pth", "-v"],
    "diff, one element differs": ["diff", "old.pth", "new.pth"],
    "diff --format json": ["diff", "old.pth", "new.pth", "--format", "json"],
    "diff, .pth and .safetensors": ["diff", "old.pth", "old.safetensors"],
    "digest": ["digest", "old.pth"],
    "gate --no-values": ["gate", "--no-values", "old.pth"],
    "migrate to .safetensors": ["migrate", "old.pth", "-o", "made.safetensors", "--force"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--counts", default="10000,30000,100000")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    counts = [int(count) for count in options.counts.split(",")]
    found = {count: grown(options.folder, count, options.rounds) for count in counts}
    print(f"{'':32}" + "".join(f"{count:>20,}" for count in counts))
    for task in TASKS:
        cells = (
            f"{seconds:8.2f} s{mib:6.0f} MiB" for seconds, mib in (f[task] for f in found.values())
        )
        print(f"{task:32}" + " ".join(cells))


def grown(parent: Path | None, count: int, rounds: int) -> dict[str, tuple[float, float]]:
    with tempfile.TemporaryDirectory(dir=parent) as name:
        subprocess.run([sys.executable, "-c", MAKE, name, str(count)], check=True)
        found: dict[str, tuple[float, float]] = {}
        for _ in range(rounds):
            for task, words in TASKS.items():
                seconds, mib = measured([*CKPTOOL, *words], Path(name))
                before = found.get(task, (seconds, mib))
                found[task] = min(seconds, before[0]), max(mib, before[1])
    return found


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """Return the seconds of a command and the most memory that it held, in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in {0, 1}:
        sys.exit(f"{command}: exit {process.returncode}")
    return seconds, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()

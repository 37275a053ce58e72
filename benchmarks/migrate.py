"""How fast and how small a migration is, as ratios to `cp` plus `sync` of the same file.

    python benchmarks/migrate.py [--gib 2] [--rounds 3] [FOLDER]

A .pth of --gib GiB becomes a safetensors file with one buffer injected: from a literal without a
module, from the constructor with one (parameters on meta, torch loaded). Beside it the usual
script, `torch.load` and `save_file`; and a checkpoint of 16 shards of which one changes. Every
round measures all of them one after the other, so that a slow minute of the machine slows them
all; the best counts. Before each, memory is touched and freed, since a virtual machine's host may
hand out late what the page cache will need, and some runs would wait seconds for it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOUCH = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]))
for start in range(0, len(memory), mmap.PAGESIZE):
    memory[start] = 1
"""
MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1024, 1024, bias=False) for _ in range(layers)])
        self.register_buffer("mask", torch.triu(torch.ones(64, 64), diagonal=1))
"""
USUAL = """
import sys, torch
from safetensors.torch import save_file
state = torch.load(sys.argv[1])
state["mask"] = torch.triu(torch.ones(64, 64), diagonal=1)
save_file(state, sys.argv[2], metadata={"format": "pt"})
"""
MAKE = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
folder, layers = Path(sys.argv[1]), int(sys.argv[2])
state = {f"layers.{n}.weight": torch.randn(1024, 1024) for n in range(layers)}
torch.save(state, folder / "model.pth")
(folder / "shards").mkdir()
names, shards = {}, 16
for n in range(shards):
    name = f"model-{n + 1:05}-of-{shards:05}.safetensors"
    part = {k: v for i, (k, v) in enumerate(state.items()) if i * shards // layers == n}
    save_file(part, folder / "shards" / name, metadata={"format": "pt"})
    names |= dict.fromkeys(part, name)
index = {"metadata": {}, "weight_map": names}
(folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, layers = Path(name), int(options.gib * 256)
        (folder / "bench_model.py").write_text(MODEL)
        subprocess.run([sys.executable, "-c", MAKE, folder, str(layers)], check=True)
        best: dict[str, tuple[float, int]] = {}
        for _ in range(options.rounds):
            for task, command in tasks(folder, layers).items():
                seconds, kib = measured(command, folder, 3 * int(options.gib * 2**30))
                best[task] = min(best.get(task, (seconds, kib)), (seconds, kib))
        report(best)


def tasks(folder: Path, layers: int) -> dict[str, list[str]]:
    source, migrate = str(folder / "model.pth"), [sys.executable, "-m", "ckptool", "migrate"]
    mask = "--inject", "mask=literal:" + json.dumps([[0.5] * 64] * 64)
    named = "-m", "bench_model:Model", "-k", f"layers={layers}"
    new = str(folder / "out" / "new.safetensors")
    shard = sorted((folder / "shards").glob("*.safetensors"))[8]
    return {
        "cp + sync": ["sh", "-c", f"cp {source} {folder}/out/copy && sync {folder}/out/copy"],
        "without a module": [*migrate, source, "-o", new, *mask],
        "without digests": [*migrate, source, "-o", new, *mask, "--no-provenance"],
        "with a module": [*migrate, source, "-o", new, *named],
        "torch.load + save_file": [sys.executable, "-c", USUAL, source, new],
        "cp + sync of one shard": ["sh", "-c", f"cp {shard} {folder}/out/s && sync {folder}/out/s"],
        "16 shards, one changed": [
            *migrate, str(folder / "shards"), "-o", str(folder / "out" / "new"),
            "--inject", f"layers.{layers // 2}.mask=literal:1",
        ],
    }  # fmt: skip


def measured(command: list[str], folder: Path, nbytes: int) -> tuple[float, int]:
    """Return the seconds of a command and the most memory that it held, in KiB."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    touch(nbytes)
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command}: exit {process.returncode}")
    return seconds, usage.ru_maxrss


def touch(nbytes: int) -> None:
    """Write to so many bytes of memory, or to half of what is free, in a process that ends."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    subprocess.run([sys.executable, "-c", TOUCH, str(min(nbytes, free))], check=True)


def report(best: dict[str, tuple[float, int]]) -> None:
    whole, shard = best["cp + sync"][0], best["cp + sync of one shard"][0]
    print(f"{'task':24} {'seconds':>8} {'ratio':>6} {'MiB':>6}")
    for task, (seconds, kib) in best.items():
        ratio = seconds / (shard if "shard" in task else whole)
        print(f"{task:24} {seconds:8.2f} {ratio:6.2f} {kib / 1024:6.0f}")
    usual = best["torch.load + save_file"][0]
    print(f"the usual script takes {usual / best['without a module'][0]:.1f} times as long")


if __name__ == "__main__":
    main()

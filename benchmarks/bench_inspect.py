"""What `ckptool inspect` costs: time and memory of the whole process, beside a torch script's.

    python benchmarks/bench_inspect.py [--folder FOLDER]

Makes its files (about 2.1 GB) in a temporary folder, and removes them. Every number is the middle
one of several runs with the files in the page cache; both sides of a ratio are from the same run
of this script. This process never imports torch: a child would be charged for its memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

WRITE = """
import sys, torch
from collections import OrderedDict
from safetensors.torch import save_file
path, count, numel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
keys = [f"model.layers.{n // 10}.block{n % 10}.attention.weight" for n in range(count)]
tensors = OrderedDict((key, torch.zeros(numel)) for key in keys)
torch.save(tensors, path) if path.endswith(".pth") else save_file(tensors, path, {"format": "pt"})
"""
TORCH = """
import sys, torch
held = torch.load(sys.argv[1], mmap=True, map_location="meta", weights_only=True)
for key, tensor in held.items():
    print(key, tuple(tensor.shape), tensor.dtype, tensor.nbytes)
"""
CKPTOOL = [str(Path(sys.executable).with_name("ckptool"))]
RUNS = 7
LARGE = (300, 1_640_000)
"""Tensors, and elements of each: 1.97 GB."""


class Cost(NamedTuple):
    seconds: float
    processor: float
    """Seconds of processor time: what stays the same when other work shares the machine."""
    mebibytes: float


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--folder", help="where to make the files, if not in the usual place")
    with tempfile.TemporaryDirectory(dir=options.parse_args().folder) as folder:
        large(Path(folder))
        growth(Path(folder))
    show("ckptool --help", cost([*CKPTOOL, "--help"]), "< 0.15 s")


def large(folder: Path) -> None:
    path = written(folder / "large.pth", *LARGE)
    print(f"{path.stat().st_size / 1e9:.2f} GB .pth of {LARGE[0]} tensors")
    ours = cost([*CKPTOOL, "inspect", path])
    theirs = cost([sys.executable, "-c", TORCH, path])
    show("  ckptool inspect", ours, "< 0.15 s, < 40 MiB")
    show("  torch.load(mmap=True, map_location='meta')", theirs)
    ratio = theirs.seconds / ours.seconds, theirs.mebibytes / ours.mebibytes
    print(f"  {ratio[0]:.1f} times faster (>= 10), {ratio[1]:.1f} times less memory")
    path.unlink()


def growth(folder: Path) -> None:
    for suffix in ("pth", "safetensors"):
        for count in (1_000, 10_000, 100_000):
            path = written(folder / f"{count}.{suffix}", count, 4)
            target = "< 3 s" if count == 100_000 else ""
            show(f"{count:>7,} tensors in .{suffix}", cost([*CKPTOOL, "inspect", path]), target)
            path.unlink()


def written(path: Path, count: int, numel: int) -> Path:
    subprocess.run([sys.executable, "-c", WRITE, path, str(count), str(numel)], check=True)
    return path


def cost(command: list[str | Path]) -> Cost:
    """Return the middle time and memory of several runs, after one that is not counted."""
    costs = [once(command) for _ in range(RUNS + 1)][1:]
    return Cost(*map(median, zip(*costs, strict=True)))


def once(command: list[str | Path]) -> Cost:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    seconds = time.perf_counter() - start
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def show(what: str, measured: Cost, target: str = "") -> None:
    wanted = f"   (target {target})" if target else ""
    seconds = f"{measured.seconds:8.3f} s ({measured.processor:.3f} s of processor)"
    print(f"{what:<46}{seconds} {measured.mebibytes:8.1f} MiB{wanted}", flush=True)


if __name__ == "__main__":
    main()

"""How fast content is named, as ratios to `sha256sum` of the same file in the same run.

    python benchmarks/digest.py [--gib 2] [--rounds 3] [FOLDER]

Once a checkpoint of many tensors, and once one in which a single tensor is nearly all of the file.
Beside `sha256sum`, whose speed depends on how it was built, one thread of Python's hashlib over the
same bytes. Every round measures all of them one after the other; the best counts.
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
folder, layers = Path(sys.argv[1]), int(sys.argv[2])
many = {f"layers.{n}.weight": torch.randn(1024, 1024) for n in range(layers)}
torch.save(many, folder / "many.pth")
one = {"bias": torch.zeros(3), "embedding.weight": torch.cat(list(many.values()))}
save_file(one, folder / "one.safetensors")
"""
HASHLIB = """
import hashlib, sys
with open(sys.argv[1], "rb") as file:
    print(hashlib.file_digest(file, "sha256").hexdigest())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        layers = str(int(options.gib * 256))
        subprocess.run([sys.executable, "-c", MAKE, folder, layers], check=True)
        print(f"{'file':18} {'command':24} {'seconds':>8} {'MiB':>5} {'times sha256sum':>16}")
        for file in ("many.pth", "one.safetensors"):
            compared(folder / file, options.rounds)


def compared(file: Path, rounds: int) -> None:
    commands = {
        "sha256sum": ["sha256sum", str(file)],
        "hashlib, one thread": [sys.executable, "-c", HASHLIB, str(file)],
        "ckptool digest": [sys.executable, "-m", "ckptool", "digest", str(file)],
    }
    best: dict[str, tuple[float, int]] = {}
    for _ in range(rounds):
        for name, command in commands.items():
            found = measured(command)
            best[name] = min(best.get(name, found), found)
    for name, (seconds, kib) in best.items():
        ratio = best["sha256sum"][0] / seconds
        print(f"{file.name:18} {name:24} {seconds:8.2f} {kib / 1024:5.0f} {ratio:16.2f}")


def measured(command: list[str]) -> tuple[float, int]:
    """Return the seconds of a command and the most memory that it held, in KiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command}: exit {process.returncode}")
    return seconds, usage.ru_maxrss


if __name__ == "__main__":
    main()

"""`ckptool diff` of a checkpoint and its module, beside the script that people run today.

    python benchmarks/module.py [--counts 25000,50000,100000] [--rounds 3] [FOLDER]

Makes a checkpoint of 2 GB, and checkpoints of many small tensors, in a temporary folder, and
removes them. Times are medians of whole processes in turn; memory is the most that was resident at
once, mapped files included.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from growth import CKPTOOL, measured

MODULE = """
import torch
from torch import nn

class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2048, 2048) for _ in range(125))
        self.register_buffer("mask", torch.triu(torch.ones(64, 64)))

class Block(nn.Module):
    def __init__(self, names) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(4)))

class Many(nn.Module):
    def __init__(self, count: int, names=("query", "key", "value", "output", "bias")) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attention": Block(names)}) for _ in range(count // len(names))
        )
"""
MAKE_LARGE = "import torch, nets; torch.save(nets.Large().state_dict(), 'large.pth')"
MAKE_MANY = """
import sys, torch, nets
state = nets.Many(int(sys.argv[1])).state_dict()
torch.save(state, "many.pth")
torch.save({k.replace("blocks.", "encoder.layers."): v for k, v in state.items()}, "renamed.pth")
"""
SCRIPT = """
import sys, torch, nets
state = torch.load(sys.argv[1], mmap=True, weights_only=True)
print(eval("nets." + sys.argv[2]).load_state_dict(state, strict=False))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--counts", default="25000,50000,100000")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "nets.py").write_text(MODULE)
        make(folder, MAKE_LARGE)
        compare("2 GB", folder, "large.pth", "Large()", options.rounds)
        for count in options.counts.split(","):
            make(folder, MAKE_MANY, count)
            compare(f"{count} keys", folder, "many.pth", f"Many({count})", options.rounds)
            renamed = f"{count} keys, each renamed"
            compare(renamed, folder, "renamed.pth", f"Many({count})", options.rounds)


def make(folder: Path, script: str, *words: str) -> None:
    subprocess.run([sys.executable, "-c", script, *words], cwd=folder, check=True)


def compare(name: str, folder: Path, file: str, call: str, rounds: int) -> None:
    """Print the medians of the script and of `diff`, and their ratio."""
    function, _, argument = call.rstrip(")").partition("(")
    words = ["-k", f"count={argument}"] if argument else []
    diff = [*CKPTOOL, "diff", file, "-m", f"nets:{function}", *words, "-q"]
    script = [sys.executable, "-c", SCRIPT, file, call]
    runs = [(measured(script, folder), measured(diff, folder)) for _ in range(rounds)]
    theirs, ours = (statistics.median(run[side][0] for run in runs) for side in (0, 1))
    script_mib, diff_mib = (max(run[side][1] for run in runs) for side in (0, 1))
    print(
        f"{name:28} script {theirs:6.2f} s {script_mib:6.0f} MiB"
        f"   ckptool diff {ours:6.2f} s {diff_mib:6.0f} MiB   ratio {ours / theirs:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()

"""What the largest checkpoints cost: files of 100 GB and 1 TB that take no room on the disk.

    python benchmarks/sparse.py [--folder FOLDER]

The files are sparse: headers, pickles and directories are real, the elements are holes. Times are
of whole processes, each the middle one of several; requests and bytes are counted by the server.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
CKPTOOL = [sys.executable, "-m", "ckptool"]
RUNS = 5
SIDE = 1 << 14
"""A tensor of SIDE x SIDE float32 has 1 GiB."""


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.remote.servers import serving

    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--folder", help="where to make the files, if not in the usual place")
    with tempfile.TemporaryDirectory(dir=options.parse_args().folder) as name:
        folder = Path(name)
        torch_file(folder / "model.pth", 100)
        safetensors_file(folder / "model.safetensors", "", 100)
        for place in ("old", "new"):
            sharded(folder / place, shards=64, each=16)
        index = "model.safetensors.index.json"
        with serving(folder) as site:
            for said, path, far in (
                ("107 GB .pth, 100 tensors", "model.pth", "model.pth"),
                ("107 GB safetensors, 100 tensors", "model.safetensors", "model.safetensors"),
                ("1.1 TB in 64 shards, 1,024 tensors", "old", f"old/{index}"),
            ):
                local = seconds("inspect", folder / path)
                remote = seconds("inspect", f"{site.url}/{far}")
                site.forget()
                seconds("inspect", f"{site.url}/{far}", runs=1)
                count, sent = len(site.requests), site.sent
                print(f"{said}: inspect {local:.2f} s; over http {remote:.2f} s, ", end="")
                print(f"{count} requests, {sent / 1024:.0f} KiB")
            both = (folder / "old", folder / "new")
            print(f"two of 1.1 TB: diff --no-values {seconds('diff', '--no-values', *both):.2f} s")


def seconds(*words: object, runs: int = RUNS) -> float:
    """Return how long the command takes as a process."""
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(
            [*CKPTOOL, *map(str, words)],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        taken.append(time.perf_counter() - start)
    return median(taken)


def torch_file(path: Path, count: int) -> None:
    """Let torch write a file of `count` GiB, and leave the elements out."""
    import torch

    state = {f"layers.{n}.weight": torch.empty(SIDE, SIDE) for n in range(count)}
    with torch.serialization.skip_data():
        torch.save(state, path)


def safetensors_file(path: Path, prefix: str, count: int) -> list[str]:
    """Write the header of a file of `count` GiB; return its keys."""
    nbytes = 4 * SIDE * SIDE
    header = {
        f"{prefix}layers.{n}.weight": {
            "dtype": "F32",
            "shape": [SIDE, SIDE],
            "data_offsets": [n * nbytes, (n + 1) * nbytes],
        }
        for n in range(count)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + count * nbytes)
    return list(header)


def sharded(folder: Path, shards: int, each: int) -> None:
    """Write `shards` files of `each` GiB, and their index."""
    folder.mkdir()
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        keys = safetensors_file(folder / name, f"block{number}.", each)
        weight_map |= dict.fromkeys(keys, name)
    total = 4 * SIDE * SIDE * shards * each
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    main()

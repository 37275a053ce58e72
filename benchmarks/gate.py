"""What gating a release of many checkpoints costs, by structure and file rules alone.

    python benchmarks/gate.py [--count 50] [--megabytes 100]

Makes sparse safetensors files in a temporary folder (they take hardly any room), and removes them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

TENSORS = 100
RUNS = 5


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--count", type=int, default=50)
    options.add_argument("--megabytes", type=int, default=100)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{n}.safetensors" for n in range(chosen.count)]
        for path in paths:
            write(path, chosen.megabytes * 10**6)
        seconds = median(once(paths) for _ in range(RUNS))
    size = f"{chosen.count} checkpoints of {chosen.megabytes} MB, {TENSORS} tensors each"
    print(f"ckptool gate, {size}: {seconds:.2f} s (target < 3 s)")


def write(path: Path, nbytes: int) -> None:
    """Write a safetensors file of that size whose tensors are a hole: zeros."""
    each = nbytes // TENSORS // 4
    header = {
        "__metadata__": {"format": "pt"},
        **{
            f"layers.{n}.weight": {
                "dtype": "F32",
                "shape": [each],
                "data_offsets": [n * each * 4, (n + 1) * each * 4],
            }
            for n in range(TENSORS)
        },
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + each * 4 * TENSORS)


def once(paths: list[Path]) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-m", "ckptool", "gate", "--no-values", *map(str, paths), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the gate ended with {done.returncode}: {done.stdout}{done.stderr}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

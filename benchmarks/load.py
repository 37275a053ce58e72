"""`ckptool.load` against each container's own way: time and peak memory, as ratios.

    python benchmarks/load.py [MIB] [ROUNDS] [--json]

Each row is one container of a state_dict of MIB mebibytes (default 1024), which is loaded into a
live module whose parameters are already in memory, from the page cache; the last rows are 2,000
tensors of 4 or 16 elements. Time is the median of ROUNDS (default 7) loads, in which the two ways
take turns in one process. Memory is the highest resident set of one load above that before it, in a
process for each. Imports are done before. With `--json`, the output is container -> [what it is
compared with, seconds by the clock (its, ckptool's), seconds of the processor (its, ckptool's)].
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from torch import nn

WIDTH = 2048
SHARDS = 4


class Stack(nn.Module):
    """Linear layers with norms, as many as fill the size."""

    def __init__(self, mebibytes: int) -> None:
        super().__init__()
        count = max(1, (mebibytes << 20) // (WIDTH * WIDTH * 4))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)) for _ in range(count)
        )


class Small(nn.Module):
    """1,000 tiny layers in blocks, as many small tensors as a large network has."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(*(nn.Linear(4, 4) for _ in range(10))) for _ in range(100)
        )


def load_pth(module: nn.Module, path: Path) -> None:
    module.load_state_dict(torch.load(path, mmap=True, weights_only=True))


def load_safetensors(module: nn.Module, path: Path) -> None:
    from safetensors.torch import load_model

    load_model(module, path)


def load_safetensors_file(module: nn.Module, path: Path) -> None:
    from safetensors.torch import load_file

    module.load_state_dict(load_file(path))


def load_torch_shards(module: nn.Module, path: Path) -> None:
    state_dict = {}
    for file in sorted(path.glob("*.bin")):
        state_dict |= torch.load(file, mmap=True, weights_only=True)
    module.load_state_dict(state_dict)


def load_safetensors_shards(module: nn.Module, path: Path) -> None:
    from safetensors.torch import load_file

    state_dict = {}
    for file in sorted(path.glob("*.safetensors")):
        state_dict |= load_file(file)
    module.load_state_dict(state_dict)


def load_dcp(module: nn.Module, path: Path) -> None:
    from torch.distributed import checkpoint

    state_dict = module.state_dict()
    checkpoint.load(state_dict, checkpoint_id=path, no_dist=True)
    module.load_state_dict(state_dict)


def write_shards(state: dict[str, torch.Tensor], folder: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    keys, stem = list(state), "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number in range(SHARDS):
        name = f"{stem}-{number + 1:05}-of-{SHARDS:05}.{suffix}"
        part = {key: state[key] for key in keys[number::SHARDS]}
        if suffix == "safetensors":
            save_file(part, folder / name, metadata={"format": "pt"})
        else:
            torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def write_safetensors(state: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path)


def write_dcp(state: dict[str, torch.Tensor], path: Path) -> None:
    from torch.distributed import checkpoint

    checkpoint.save(state, checkpoint_id=path, no_dist=True)


CONTAINERS: dict[str, tuple[Callable[..., None], Callable[..., None], str]] = {
    "model.pth": (torch.save, load_pth, "torch.load(mmap=True)"),
    "model.safetensors": (write_safetensors, load_safetensors, "safetensors load_model"),
    "shards": (
        lambda state, path: write_shards(state, path, "bin"),
        load_torch_shards,
        "torch.load(mmap=True) of each",
    ),
    "safetensors-shards": (
        lambda state, path: write_shards(state, path, "safetensors"),
        load_safetensors_shards,
        "safetensors load_file of each",
    ),
    "dcp": (write_dcp, load_dcp, "dcp.load"),
    "small.pth": (torch.save, load_pth, "torch.load(mmap=True)"),
    "small.safetensors": (write_safetensors, load_safetensors_file, "safetensors load_file"),
}


def build_module(name: str, mebibytes: int) -> nn.Module:
    return Small() if name.startswith("small") else Stack(mebibytes)


def write_containers(folder: Path, mebibytes: int) -> Iterator[tuple[Path, str]]:
    """Yield (path, what it is compared with) of each container, after it was written."""
    for name, (write, _, against) in CONTAINERS.items():
        write(build_module(name, mebibytes).state_dict(), folder / name)
        yield folder / name, against


def print_json(mebibytes: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(
            json.dumps(
                {
                    path.name: [against, *run("time", path, mebibytes, rounds)]
                    for path, against in write_containers(Path(folder), mebibytes)
                }
            )
        )


def main(mebibytes: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = Stack(mebibytes).state_dict()
        nbytes = sum(tensor.nbytes for tensor in state.values())
        print(f"{len(state)} tensors, {nbytes / 2**20:.0f} MiB, {rounds} rounds")
        print(f"{'container':20} {'against':30} {'time':>18} {'peak memory':>22}")
        for path, against in write_containers(Path(folder), mebibytes):
            name = path.name
            own, ours, *_ = run("time", path, mebibytes, rounds)
            (own_peak,), (our_peak,) = (run(w, path, mebibytes, 1) for w in ("own", "ckptool"))
            time_text = f"{ours / own:.2f} ({ours:.3f} s)"
            memory_text = f"{our_peak / own_peak:.2f} ({our_peak / 2**20:.0f} MiB)"
            print(f"{name:20} {against:30} {time_text:>18} {memory_text:>22}", flush=True)


def run(what: str, path: Path, mebibytes: int, rounds: int) -> list[float]:
    """Measure in a process of its own: four numbers of seconds, as in JSON, or [bytes]."""
    command = [sys.executable, __file__, "--measure", what, path, str(mebibytes), str(rounds)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [float(number) for number in output.split()]


def measure(what: str, path: Path, mebibytes: int, rounds: int) -> None:
    import ckptool

    warnings.simplefilter("ignore")
    module, small = build_module(path.name, mebibytes), build_module(path.name, 4)
    ways = {"own": CONTAINERS[path.name][1], "ckptool": ckptool.load}
    asked = list(ways) if what == "time" else [what]
    with tempfile.TemporaryDirectory() as folder:  # everything is imported before
        CONTAINERS[path.name][0](small.state_dict(), Path(folder) / path.name)
        for way in asked:
            ways[way](small, Path(folder) / path.name)
    before = read_resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set begins anew
    clock, processor = ({way: [] for way in asked} for _ in range(2))
    for _ in range(rounds):
        for way in asked:
            start, processor_start = time.perf_counter(), time.process_time()
            ways[way](module, path)
            clock[way].append(time.perf_counter() - start)
            processor[way].append(time.process_time() - processor_start)
    if what == "time":
        print(*map(median, (*clock.values(), *processor.values())))
    else:
        print(read_peak_bytes() - before)


def read_resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def read_peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        warnings.simplefilter("ignore")
        numbers = [int(argument) for argument in sys.argv[1:] if argument != "--json"]
        show = print_json if "--json" in sys.argv else main
        show(*(*numbers, *(1024, 7)[len(numbers) :]))

"""What people wait for: ckptool and what they use today, in turn, and how many times as long it is.

    python benchmarks/run.py [--gib 2] [--tensors 100000] [--rounds 2] [--minutes 12] [FOLDER]

Makes its data in a temporary folder of FOLDER (14 GiB for --gib 2) and removes it. Whole processes,
one after the other in every round, so that a slow minute of the machine slows them all; the best
counts, by the clock and by the processor. With a cold cache it is the mean of four times as many
rounds: what a disk takes for the same bytes differs from one to the next. No further round is begun
once the minutes are over.
Loads into a module are measured within one process each (benchmarks/load.py), without imports.
Prints the table of docs/benchmarks.md, and writes the ratios to benchmarks/ratios.json, or to
another file (`--json`), which benchmarks/compare.py holds against those.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAKE = """
import sys, torch
from pathlib import Path
folder, layers, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
state = {f"layers.{n}.weight": torch.randn(1024, 1024) * 0.02 for n in range(layers)}
torch.save(state, folder / "old.pth")
torch.save({key: value.bfloat16() for key, value in state.items()}, folder / "old-bf16.pth")
state[f"layers.{layers // 2}.weight"][-1, -1] += 1
torch.save(state, folder / "one.pth")
state = {key: value + 1e-4 for key, value in state.items()}
torch.save(state, folder / "all.pth")
torch.save({key: value.bfloat16() for key, value in state.items()}, folder / "all-bf16.pth")
many = {f"blocks.{n // 10}.part{n % 10}.weight": torch.full((4,), float(n)) for n in range(count)}
torch.save(many, folder / "many.pth")
many[f"blocks.{count // 20}.part3.weight"][1] += 1
torch.save(many, folder / "many-new.pth")
torch.save({f"layers.{n}.weight": torch.ones(8, 8) for n in range(300)}, folder / "small.pth")
"""
LOAD = "import sys, torch; a, b = (torch.load(p, mmap=True) for p in sys.argv[1:3]); "
SCRIPTS = {
    "torch.load(mmap=True, map_location='meta')": (
        "import sys, torch; state = torch.load(sys.argv[1], mmap=True, map_location='meta'); "
        "print([(key, value.shape) for key, value in state.items()])"
    ),
    "torch.equal of each": LOAD + "print([key for key in a if not torch.equal(a[key], b[key])])",
    "(a - b).abs().max() of each": (
        LOAD + "print([float((a[key] - b[key]).abs().max()) for key in a])"
    ),
    "torch.load and save_file": (
        "import sys, torch; from safetensors.torch import save_file; "
        "save_file(torch.load(sys.argv[1], mmap=True), sys.argv[2])"
    ),
    "import click, tabulate": "import click, tabulate",
    "zipfile and pickle.Unpickler with stubs": """
import collections, pickle, sys, zipfile
def stub(*arguments): return arguments
class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        return collections.OrderedDict if name == "OrderedDict" else stub
    def persistent_load(self, pid): return pid
archive = zipfile.ZipFile(sys.argv[1])
name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
print(len(Unpickler(archive.open(name)).load()))
""",
}
RATIOS = Path(__file__).with_name("ratios.json")
_COLD_FACTOR = 4
"""Rounds with a cold cache for each of the others."""
INSPECT_MANY = ("inspect", "many.pth")


class Case(NamedTuple):
    """A command of ckptool, and what is measured next to it."""

    name: str
    words: tuple[str, ...]
    today: str
    """Name of a script of SCRIPTS, or a command."""
    today_words: tuple[str, ...] = ()
    """Arguments of the script."""
    is_cold: bool = False
    """Whether the files are dropped from the page cache before each run."""


class Seconds(NamedTuple):
    """Best times of a process."""

    clock: float
    processor: float


CASES = (
    Case(
        "`inspect`, large .pth",
        ("inspect", "old.pth"),
        "torch.load(mmap=True, map_location='meta')",
        ("old.pth",),
    ),
    Case("`inspect`, 300 tensors", ("inspect", "small.pth"), "import click, tabulate"),
    Case(
        "`diff`, one element differs",
        ("diff", "old.pth", "one.pth"),
        "torch.equal of each",
        ("old.pth", "one.pth"),
    ),
    Case("`diff`, equal files", ("diff", "old.pth", "same.pth"), "cmp old.pth same.pth"),
    Case("`diff`, every element differs", ("diff", "old.pth", "all.pth"), "cmp old.pth same.pth"),
    Case(
        "`diff`, every element differs",
        ("diff", "old.pth", "all.pth"),
        "(a - b).abs().max() of each",
        ("old.pth", "all.pth"),
    ),
    Case(
        "`diff`, every element differs, bfloat16",
        ("diff", "old-bf16.pth", "all-bf16.pth"),
        "(a - b).abs().max() of each",
        ("old-bf16.pth", "all-bf16.pth"),
    ),
    Case("`digest`", ("digest", "old.pth"), "sha256sum old.pth"),
    Case("`digest`, cold cache", ("digest", "old.pth"), "cat old.pth", is_cold=True),
    Case(
        "`diff`, equal files, cold cache",
        ("diff", "old.pth", "same.pth"),
        "cat old.pth same.pth",
        is_cold=True,
    ),
    Case(
        "`migrate` to .safetensors",
        ("migrate", "old.pth", "-o", "made.safetensors", "--force"),
        "torch.load and save_file",
        ("old.pth", "saved.safetensors"),
    ),
    Case(
        "`inspect`, many tensors",
        INSPECT_MANY,
        "zipfile and pickle.Unpickler with stubs",
        ("many.pth",),
    ),
    Case(
        "`diff`, many tensors, one element differs",
        ("diff", "many.pth", "many-new.pth"),
        "ckptool inspect",
        INSPECT_MANY,
    ),
    Case(
        "`migrate`, many tensors",
        ("migrate", "many.pth", "-o", "many.safetensors", "--force"),
        "ckptool inspect",
        INSPECT_MANY,
    ),
    Case(
        "`gate --no-values`, many tensors",
        ("gate", "--no-values", "many.pth"),
        "ckptool inspect",
        INSPECT_MANY,
    ),
    Case("`gate`, many tensors", ("gate", "many.pth"), "ckptool inspect", INSPECT_MANY),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--tensors", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=12, help="begin no further round after")
    parser.add_argument("--only", default="", help="measure only the cases with this in their name")
    parser.add_argument("--json", type=Path, help="write the ratios to this file")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is removed
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        cases = [case for case in CASES if options.only in case.name]
        if cases:
            sizes = (str(round(options.gib * 256)), str(options.tensors))
            subprocess.run([sys.executable, "-c", MAKE, name, *sizes], check=True)
            subprocess.run(["cp", "old.pth", "same.pth"], cwd=folder, check=True)
        measured = {case: measure_case(case, folder, options.rounds, deadline) for case in cases}
    measured |= measure_loads(options.gib, options.only)
    print("\n".join(iter_table_rows(measured)))
    json_path = options.json or (None if options.only else RATIOS)
    if json_path:
        ratios = {f"{c.name} / {c.today}": compute_ratios(*m) for c, m in measured.items()}
        json_path.write_text(json.dumps(ratios, indent=2) + "\n", encoding="utf-8")


def measure_case(case: Case, folder: Path, rounds: int, deadline: float) -> tuple[Seconds, Seconds]:
    """Return the best times of ckptool and of what is measured next to it.

    After `deadline` no round but the first is begun. With a cold cache it is the mean of more
    rounds: what a disk takes for the same bytes differs from one to the next.
    """
    ckptool = [sys.executable, "-m", "ckptool"]
    if case.today == "ckptool inspect":
        today = [*ckptool, *case.today_words]
    elif case.today in SCRIPTS:
        today = [sys.executable, "-c", SCRIPTS[case.today], *case.today_words]
    else:
        today = case.today.split()
    runs = [
        (run_once([*ckptool, *case.words], folder, case), run_once(today, folder, case))
        for number in range(rounds * _COLD_FACTOR if case.is_cold else rounds)
        if not number or time.monotonic() < deadline
    ]
    ours, theirs = zip(*runs, strict=True)
    choose = compute_mean if case.is_cold else find_best
    return choose(ours), choose(theirs)


LOADED = {
    "model.pth": ".pth",
    "model.safetensors": ".safetensors",
    "shards": "shards of .bin",
    "safetensors-shards": "shards of .safetensors",
    "dcp": "distributed checkpoint",
    "small.pth": "2,000 small tensors, .pth",
    "small.safetensors": "2,000 small tensors, .safetensors",
}
"""Container of benchmarks/load.py -> its words in the table."""


def measure_loads(gib: float, only: str) -> dict[Case, tuple[Seconds, Seconds]]:
    """Return the median times of `ckptool.load` and of each container's own way."""
    names = {container: f"`load`, {words}" for container, words in LOADED.items()}
    if not any(only in name for name in names.values()):
        return {}
    script = Path(__file__).with_name("load.py")
    command = [sys.executable, str(script), str(round(gib * 256)), "11", "--json"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return {
        Case(names[container], (), against): (Seconds(clock, processor), Seconds(*own))
        for container, (against, *numbers) in json.loads(output).items()
        for own, clock, processor in [((numbers[0], numbers[2]), numbers[1], numbers[3])]
        if only in names[container]
    }


def run_once(command: list[str], folder: Path, case: Case) -> Seconds:
    if case.is_cold:
        drop_from_cache(folder)
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in {0, 1}:
        sys.exit(f"{command}: exit {process.returncode}")
    return Seconds(seconds, usage.ru_utime + usage.ru_stime)


def drop_from_cache(folder: Path) -> None:
    for path in folder.glob("*.pth"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def find_best(runs: tuple[Seconds, ...]) -> Seconds:
    return Seconds(min(run.clock for run in runs), min(run.processor for run in runs))


def compute_mean(runs: tuple[Seconds, ...]) -> Seconds:
    return Seconds(
        sum(run.clock for run in runs) / len(runs), sum(run.processor for run in runs) / len(runs)
    )


def compute_ratios(ours: Seconds, theirs: Seconds) -> dict[str, float]:
    return {
        "clock": round(ours.clock / theirs.clock, 2),
        "processor": round(ours.processor / max(theirs.processor, 0.01), 2),
    }


def iter_table_rows(measured: dict[Case, tuple[Seconds, Seconds]]) -> Iterator[str]:
    """Yield the rows of a Markdown table."""
    yield "| task | ckptool | alternative | | ratio | ratio of CPU time |"
    yield "|---|---|---|---|---|---|"
    for case, (ours, theirs) in measured.items():
        ratios = compute_ratios(ours, theirs)
        yield (
            f"| {case.name} | {ours.clock:.2f} s | `{case.today}` | {theirs.clock:.2f} s "
            f"| {ratios['clock']:.2f} | {ratios['processor']:.2f} |"
        )


if __name__ == "__main__":
    main()

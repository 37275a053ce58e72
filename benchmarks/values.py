"""How fast and how small a comparison of values is, as ratios to `cmp` of two equal files.

    python benchmarks/values.py [--gib 2] [--rounds 3] [--sizes 0.1,0.5,2,8] [--plot FILE] [FOLDER]

Two .pth of --gib GiB, of which one element of one tensor differs; equal ones; the other container;
all tensors different; and a cast to bfloat16. Beside them `cmp`, and the usual script: `torch.load`
(mapped) and `torch.equal`. Whole processes, every round one after the other, so that a slow minute
of the machine slows them all; the best counts. Then what it costs by size, and by the number of
tensors. On a busy machine the processor's time, which is shown as well, says more than the clock.
Memory is anonymous memory (RssAnon), looked at every 5 ms: pages of files do not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

USUAL = """
import sys, torch
a, b = (torch.load(path, mmap=True) for path in sys.argv[1:3])
print([key for key in a if not torch.equal(a[key], b[key])])
"""
MAKE = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
folder, layers, width = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
state = {f"layers.{n}.weight": torch.randn(width, width) for n in range(layers)}
torch.save(state, folder / "old.pth")
if "other" in sys.argv:
    save_file(state, folder / "old.safetensors")
    torch.save({k: v.bfloat16() for k, v in state.items()}, folder / "cast.pth")
    torch.save({k: v + 1e-6 for k, v in state.items()}, folder / "all.pth")
state[f"layers.{layers // 2}.weight"][-1, -1] += 1
torch.save(state, folder / "new.pth")
"""
WIDTH = 1024
Measured = tuple[float, float, float]
"""Seconds by the clock, seconds of the processor, and MiB of anonymous memory."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="0.1,0.5,2,8")
    parser.add_argument("--counts", default="100,1000,10000,100000")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        tasks(Path(name), options.gib, options.rounds)
    sizes = {
        gib: one_differs(options.folder, round(gib * 256), WIDTH, options.rounds)
        for gib in numbers(options.sizes)
    }
    counts = {
        count: one_differs(options.folder, int(count), 8, options.rounds)
        for count in numbers(options.counts)
    }
    table("GiB", sizes)
    table("tensors", counts)
    if options.plot:
        options.plot.write_text(plot(sizes, counts), encoding="utf-8")


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",") if number]


def make(folder: Path, layers: int, width: int, *more: str) -> None:
    words = [sys.executable, "-c", MAKE, str(folder), str(layers), str(width), *more]
    subprocess.run(words, check=True)


def tasks(folder: Path, gib: float, rounds: int) -> None:
    make(folder, int(gib * 256), WIDTH, "other")
    subprocess.run(["cp", "old.pth", "same.pth"], cwd=folder, check=True)
    diff = [sys.executable, "-m", "ckptool", "diff", "old.pth"]
    found = best(
        folder,
        rounds,
        {
            "cmp of equal files": ["cmp", "old.pth", "same.pth"],
            "torch.load + torch.equal": [sys.executable, "-c", USUAL, "old.pth", "new.pth"],
            "one element differs": [*diff, "new.pth"],
            "  with --jobs 1": [*diff, "new.pth", "--jobs", "1"],
            "equal": [*diff, "same.pth"],
            "equal, other container": [*diff, "old.safetensors"],
            "all tensors differ": [*diff, "all.pth"],
            "cast to bfloat16": [*diff, "cast.pth"],
        },
    )
    cmp = found["cmp of equal files"][0]
    print(f"{'task':26} {'seconds':>8} {'to cmp':>7} {'cpu s':>6} {'MiB':>6}")
    for task, (seconds, cpu, mib) in found.items():
        print(f"{task:26} {seconds:8.2f} {seconds / cmp:7.2f} {cpu:6.2f} {mib:6.0f}")
    usual = found["torch.load + torch.equal"][0] / found["one element differs"][0]
    print(f"the usual script takes {usual:.1f} times as long")


def one_differs(parent: Path | None, layers: int, width: int, rounds: int) -> dict[str, Measured]:
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        make(folder, layers, width)
        words = [sys.executable, "-m", "ckptool", "diff", "old.pth", "new.pth"]
        return best(
            folder,
            rounds,
            {
                "cmp": ["cmp", "old.pth", "old.pth.copy"],
                "usual": [sys.executable, "-c", USUAL, "old.pth", "new.pth"],
                "ckptool": words,
            },
        )


def best(folder: Path, rounds: int, commands: dict[str, list[str]]) -> dict[str, Measured]:
    if "cmp" in commands:
        (folder / "old.pth.copy").write_bytes(b"")
        subprocess.run(["cp", "old.pth", "old.pth.copy"], cwd=folder, check=True)
    found: dict[str, Measured] = {}
    for _ in range(rounds):
        for task, command in commands.items():
            seconds, cpu, mib = measured(command, folder)
            before = found.get(task, (seconds, cpu, mib))
            found[task] = min(seconds, before[0]), min(cpu, before[1]), max(mib, before[2])
    return found


def measured(command: list[str], folder: Path) -> Measured:
    """Run a command; of its anonymous memory the most that it held counts."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    most = [0]
    watch = threading.Thread(target=watched, args=(process.pid, most))
    watch.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    watch.join()
    if process.returncode not in {0, 1}:
        sys.exit(f"{command}: exit {process.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime, most[0] / 1024


def watched(pid: int, most: list[int]) -> None:
    status = Path(f"/proc/{pid}/status")
    while True:
        try:
            text = status.read_text()
        except OSError:
            return
        found = [line.split()[1] for line in text.splitlines() if line.startswith("RssAnon")]
        if not found:
            return  # it has ended
        most[0] = max(most[0], int(found[0]))
        time.sleep(0.005)


def table(what: str, found: dict[float, dict[str, Measured]]) -> None:
    print(f"\n{what:>8} {'cmp s':>7} {'usual s':>8} {'ckptool s':>10} {'cpu s':>6} {'MiB':>5}")
    for number, by in found.items():
        times = f"{by['cmp'][0]:7.2f} {by['usual'][0]:8.2f} {by['ckptool'][0]:10.2f}"
        print(f"{number:8g} {times} {by['ckptool'][1]:6.2f} {by['ckptool'][2]:5.0f}")


COLORS = {"cmp": "#888888", "usual": "#c0504d", "ckptool": "#1f6fb4"}
NAMES = {"cmp": "cmp", "usual": "torch.load + torch.equal", "ckptool": "ckptool diff"}
WIDE, HIGH, EDGE = 380, 260, 50


def plot(*charts: dict[float, dict[str, Measured]]) -> str:
    """Draw each chart beside the other: seconds by size, and by the number of tensors."""
    titles = ("seconds by GiB a file", "seconds by tensors (8 x 8)")
    parts = [
        f'<g transform="translate({n * WIDE} 0)">{chart(title, found)}</g>'
        for n, (title, found) in enumerate(zip(titles, charts, strict=True))
    ]
    legend = "".join(
        f'<text x="{EDGE + n * 220}" y="{HIGH + 30}" fill="{COLORS[by]}">{name}</text>'
        for n, (by, name) in enumerate(NAMES.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE * len(charts)} {HIGH + 45}" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{"".join(parts)}\n{legend}</svg>\n'
    )


def chart(title: str, found: dict[float, dict[str, Measured]]) -> str:
    """Draw one line for each command, over evenly spaced columns, on a logarithmic scale."""
    from math import log10

    columns = list(found)
    step = (WIDE - EDGE - 30) / max(1, len(columns) - 1)
    low, high = -2, 2

    def y(seconds: float) -> float:
        share = (log10(max(seconds, 0.01)) - low) / (high - low)
        return HIGH - 30 - share * (HIGH - 60)

    parts = [f'<text x="{EDGE}" y="18" font-weight="bold">{title}</text>']
    for exponent in range(low, high + 1):
        at = y(10.0**exponent)
        parts.append(f'<path d="M{EDGE} {at:.1f}H{WIDE - 20}" stroke="#dddddd"/>')
        parts.append(
            f'<text x="{EDGE - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**exponent:g}</text>'
        )
    for n, number in enumerate(columns):
        at = f'x="{EDGE + n * step:.1f}" y="{HIGH - 10}"'
        parts.append(f'<text {at} text-anchor="middle">{number:,g}</text>')
    for by, color in COLORS.items():
        points = " ".join(
            f"{EDGE + n * step:.1f},{y(found[number][by][0]):.1f}"
            for n, number in enumerate(columns)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
    return "\n".join(parts)


if __name__ == "__main__":
    main()

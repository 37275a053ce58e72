"""A model of GPT-2's size -> what a simulated pass costs against a plain one on the CPU.

`python benchmarks/simulated.py`, with everything else quiet. Each pass has a process to itself for
its memory, and the fastest of three is taken for its time.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from torch import nn

from ckptool.verification.backends import cpu, simulated
from ckptool.verification.forward_pass import ForwardPass, Inputs

WIDTH, LAYERS, HEADS, WORDS, CONTEXT = 768, 12, 12, 50257, 1024
TOKENS = 512
RUNS = 3


class Block(nn.Module):
    """Attention and a feed-forward net, as GPT-2 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.after = nn.LayerNorm(WIDTH)
        self.net = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.register_buffer("mask", torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        parts = self.qkv(self.before(x)).view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        scores = query @ key.mT / key.shape[-1] ** 0.5
        scores = scores.masked_fill(self.mask[:tokens, :tokens], -torch.inf)
        mixed = scores.softmax(-1) @ value
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.net(self.after(x))


class GPT2(nn.Module):
    """163 million parameters: the head is not tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.words(tokens) + self.places(places))))


def main() -> None:
    """Print both times and their ratio; with --one, do one pass and print its time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", choices=["plain", "simulated"])
    chosen = parser.parse_args().one
    if chosen:
        one(chosen)
        return
    found = {way: best(way) for way in ("plain", "simulated")}
    for way, (seconds, peak) in found.items():
        print(f"{way:9} {seconds:6.2f} s, {peak / 2**20:5.2f} GiB at most")
    print(f"ratio     {found['simulated'][0] / found['plain'][0]:6.2f}")


def best(way: str) -> tuple[float, int]:
    """Return the time of the fastest of a few processes, and the most memory that one took."""
    command = [sys.executable, __file__, "--one", way]
    runs = [subprocess.check_output(command, text=True).split() for _ in range(RUNS)]
    return min(float(seconds) for seconds, _ in runs), max(int(peak) for _, peak in runs)


def one(way: str) -> None:
    torch.manual_seed(0)
    module = GPT2().eval()
    inputs = Inputs((torch.randint(0, WORDS, (1, TOKENS)),))
    start = time.perf_counter()
    found = go(way, module, inputs)
    seconds = time.perf_counter() - start
    if found.error or found.device_mismatches:
        raise SystemExit(f"{way}: {found.error or found.device_mismatches}")
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def go(way: str, module: nn.Module, inputs: Inputs) -> ForwardPass:
    if way == "plain":
        return cpu.run_on_cpu(module, inputs)
    return simulated.run_simulated(module, inputs, torch.device("cuda", 0))


if __name__ == "__main__":
    main()

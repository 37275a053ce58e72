"""Module x inputs -> Pass: one forward pass, whatever device it was on."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ckptool.modules.usercode import UserCodeError, user_code
from ckptool.verification.facts import Clash
from ckptool.verification.leaves import mapped

SEED = 0
"""Of every forward pass and of the inputs that are drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What forward is called with, and where that was found."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    source: str = ""
    """"--input", "dummy_inputs of the module" ..."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """Return them with `change` applied to every tensor."""
        kwargs = {name: mapped(value, change) for name, value in self.kwargs.items()}
        return Inputs(tuple(mapped(value, change) for value in self.args), kwargs, self.source)


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """How one forward pass went."""

    device: str
    output: Any = None
    error: UserCodeError | None = None
    """What it raised, or what moving the module raised."""
    moved: bool = True
    """Whether the module could be moved to the device."""
    clashes: tuple[Clash, ...] = ()
    unmodelled: tuple[str, ...] = ()
    """What ran, and proves nothing about a real device."""
    used: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Path of a tensor that the module holds -> "file:line" of its first use; simulated only."""
    note: str = ""
    """What else is to be said of it: how much memory was needed."""


@contextmanager
def prepared(module: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Run `module` without gradients, from a fixed seed; its mode is restored."""
    before = [(member, member.training) for member in module.modules()]
    try:
        with torch.no_grad(), user_code():
            module.train(training)
            seed(SEED)
            yield
    finally:
        for member, mode in before:
            # Not train(): that one goes down the tree, and a user's may do more than set a flag.
            member.training = mode


def seed(value: int) -> None:
    """Seed the generators of Python, torch and, where it is in use, numpy and CUDA."""
    import random

    random.seed(value)
    # Not torch.manual_seed(): it would also leave a seed for a CUDA that is not started yet.
    torch.default_generator.manual_seed(value)
    started: Callable[[], bool] = torch.cuda.is_initialized
    if started():
        torch.cuda.manual_seed_all(value)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(value)

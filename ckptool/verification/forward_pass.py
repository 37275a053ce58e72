"""ForwardPass, the result of one forward pass on any device; Inputs; seeding."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ckptool.modules.build import seed_generators
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.verification.pytree import tree_map
from ckptool.verification.result import DeviceMismatch

SEED = 0
"""Seed of every forward pass and of random inputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Arguments of forward, and their source."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    source: str = ""
    """Source as text: "--input", "dummy_inputs of the module" ..."""
    idle_models: tuple[str, ...] = ()
    """Models of a pipeline that get no inputs, and are not run."""
    is_assumed: bool = False
    """Whether nobody gave them: they were made by a framework's configuration."""

    def map_tensors(self, transform: Callable[[Tensor], Tensor]) -> "Inputs":
        """Return the inputs with `transform` applied to every tensor."""
        kwargs = {name: tree_map(value, transform) for name, value in self.kwargs.items()}
        args = tuple(tree_map(value, transform) for value in self.args)
        return replace(self, args=args, kwargs=kwargs)


@dataclass(frozen=True, slots=True, eq=False)
class ForwardPass:
    """Output, error and observations of one forward pass."""

    device: str
    """Device label, as in LevelResult."""
    output: Any = None
    error: UserCodeError | None = None
    """Exception of forward or of moving the module."""
    is_moved: bool = True
    """Whether the module could be moved to the device."""
    device_mismatches: tuple[DeviceMismatch, ...] = ()
    unmodelled_operations: tuple[str, ...] = ()
    """Operations that the simulation cannot check."""
    first_uses: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Path of a tensor that the module holds -> "file:line" of its first use; simulated only."""
    note: str = ""
    """Extra information, for example peak device memory; "" if none."""


@contextmanager
def prepare_forward(module: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Context manager to run `module` as user code: no gradients, seeded, mode restored after."""
    old_modes = [(member, member.training) for member in module.modules()]
    try:
        with torch.no_grad(), user_code():
            module.train(training)
            seed_generators(SEED)
            yield
    finally:
        for member, mode in old_modes:
            # Not train(): it recurses, and a user's override may do more than set the flag.
            member.training = mode

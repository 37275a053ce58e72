"""ModuleSpec or live nn.Module -> ModuleFactory, which creates the instances to verify."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ckptool.errors import ModuleError
from ckptool.modules.build import random_state
from ckptool.modules.target import ModuleSpec, arguments, failure, importable, resolve
from ckptool.modules.usercode import UserCodeError, user_code
from ckptool.verification.passes import seed


@dataclass(frozen=True, slots=True, eq=False)
class Maker:
    """Builds instances from a constructor, or deep-copies the only instance."""

    target: str
    build: Callable[[], Any] | None = None
    """Constructor call; None if there is only `instance`."""
    instance: nn.Module | None = None

    @property
    def rebuilds(self) -> bool:
        """Whether instances are constructed anew rather than copied."""
        return self.build is not None

    def make(self, value: int = 0, *, on_meta: bool = False) -> nn.Module:
        """Return a new instance, built after seeding the generators with `seed_value`.

        Raises:
            ModuleError: the constructor raises or gives no nn.Module, or the copy fails.
        """
        try:
            with user_code():
                if self.build is None:
                    return copy.deepcopy(self.instance)  # type: ignore[return-value]
                seed(value)
                with torch.device("meta") if on_meta else ExitStack():
                    module = self.build()
        except UserCodeError as error:
            raise ModuleError(self.target, f"building it raised {error}") from error
        if not isinstance(module, nn.Module):
            raise ModuleError(self.target, f"gave a {type(module).__name__}, not an nn.Module")
        return module


@contextmanager
def maker(module: str | nn.Module, spec: ModuleSpec) -> Iterator[Maker]:
    """Context manager with the ModuleFactory of a named or live module.

    The module's folders are importable inside, and the random state is restored afterwards.

    Raises:
        ModuleError: it cannot be imported, or does not accept its arguments.
    """
    with importable(spec), random_state():
        found = module if isinstance(module, nn.Module) else resolve(spec)
        if isinstance(found, nn.Module):
            yield Maker(spec.target, instance=found)
            return
        given = arguments(spec, found)
        yield Maker(spec.target, build=lambda: _built(spec, found, given))


def _built(spec: ModuleSpec, function: Any, given: Mapping[str, object]) -> Any:
    try:
        # A copy, so that one build cannot change the arguments of the next.
        return function(**copy.deepcopy(dict(given)))
    except TypeError as error:
        raise failure(spec, function, UserCodeError(error)) from error

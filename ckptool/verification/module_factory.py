"""ModuleSpec or live nn.Module -> ModuleFactory, which creates the instances to verify."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ckptool.errors import ModuleError
from ckptool.modules.build import preserve_random_state, seed_generators
from ckptool.modules.import_target import (
    ModuleSpec,
    bind_arguments,
    make_build_error,
    prepend_search_paths,
    resolve_target,
)
from ckptool.modules.live.module_copy import copy_module
from ckptool.modules.target.rebuild import UNKNOWN_ARGUMENTS, builds_other_state, find_rebuild
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.world.cuda_on_cpu import call_constructor


@dataclass(frozen=True, slots=True, eq=False)
class ModuleFactory:
    """Creates instances: by a constructor, or as deep copies of a live module."""

    target: str
    build: Callable[[], Any] | None = None
    """Constructor call, for a live module that of another one like it; None if none is known."""
    instance: nn.Module | None = None
    """The live module that is copied; None without one."""
    obstacle: str = ""
    """Why `build` is None."""
    is_guess: bool = False
    """Whether `build` has arguments that were read from `instance`, and may be others."""

    @property
    def can_rebuild(self) -> bool:
        """Whether instances can be constructed anew."""
        return self.build is not None

    def create_module(self, seed_value: int = 0) -> nn.Module:
        """Return a copy of the live module; without one, as `construct_module`.

        Raises:
            ModuleError: the constructor raises or gives no nn.Module, or the copy fails.
        """
        if self.instance is None:
            return self.construct_module(seed_value)
        try:
            return copy_module(self.instance)
        except UserCodeError as error:
            raise ModuleError(self.target, f"copying it raised {error}") from error

    def construct_module(self, seed_value: int = 0, *, on_meta: bool = False) -> nn.Module:
        """Return a new instance, built after seeding the generators with `seed_value`.

        Raises:
            ModuleError: no constructor call is known, or it raises or gives no nn.Module.
        """
        if self.build is None:
            raise ModuleError(self.target, self.obstacle)
        try:
            with user_code():
                seed_generators(seed_value)
                with torch.device("meta") if on_meta else ExitStack():
                    module = self.build()
        except UserCodeError as error:
            if isinstance(error.error, ModuleError):
                raise error.error from error
            raise ModuleError(self.target, f"building it raised {error}") from error
        if not isinstance(module, nn.Module):
            raise ModuleError(self.target, f"gave a {type(module).__name__}, not an nn.Module")
        if module is self.instance:
            raise ModuleError(self.target, "fresh= returned the module itself, not a new one")
        return module


@contextmanager
def open_module_factory(spec: ModuleSpec) -> Iterator[ModuleFactory]:
    """Context manager with the ModuleFactory of a named module, a class or a live module.

    The module's folders are importable inside, and the random state is restored afterwards.

    Raises:
        ModuleError: it cannot be imported, or does not accept its arguments.
    """
    with prepend_search_paths(spec), preserve_random_state():
        class_or_instance = resolve_target(spec)
        if isinstance(class_or_instance, nn.Module):
            yield _make_live_factory(spec, class_or_instance)
            return
        constructor_arguments = bind_arguments(spec, class_or_instance)
        yield ModuleFactory(
            spec.label or spec.target,
            build=lambda: _build_instance(spec, class_or_instance, constructor_arguments),
        )


def _make_live_factory(spec: ModuleSpec, module: nn.Module) -> ModuleFactory:
    label = spec.label or spec.target
    rebuild = find_rebuild(module, spec.kwargs or None, spec.fresh)
    if rebuild is None:
        return ModuleFactory(label, instance=module, obstacle=UNKNOWN_ARGUMENTS)
    if rebuild.is_guess and builds_other_state(rebuild, module):
        obstacle = f"rebuilding it gives a different state_dict: {UNKNOWN_ARGUMENTS}"
        return ModuleFactory(label, instance=module, obstacle=obstacle)
    return ModuleFactory(label, rebuild.build_module, module, is_guess=rebuild.is_guess)


def _build_instance(
    spec: ModuleSpec, function: Any, constructor_arguments: Mapping[str, object]
) -> Any:
    try:
        # A copy, so that one build cannot change the arguments of the next.
        return call_constructor(function, copy.deepcopy(dict(constructor_arguments)))[0]
    except TypeError as error:
        raise make_build_error(spec, function, UserCodeError(error)) from error

"""A class or factory -> two instances of it, built under two seeds with room for no weights."""

import copy
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ckptool.errors import ModuleError
from ckptool.model import Kind, Skipped
from ckptool.modules.places import Places
from ckptool.modules.target import ModuleSpec, arguments, failure
from ckptool.modules.tensors import Storages, size
from ckptool.modules.twins import Twins
from ckptool.modules.usercode import UserCodeError, user_code
from ckptool.modules.walk import Walk, walk
from ckptool.modules.watch import watched

if TYPE_CHECKING:
    from torch import nn

SEEDS: Final = (0, 1)
REAL_BUILD_BYTES: Final = 8 << 30
"""A module with more in its parameters is never built with real values."""

_ORTHOGONAL: Final = "torch.nn.utils.parametrizations._Orthogonal"


@dataclass(frozen=True, slots=True, eq=False)
class Build:
    """One instance, and what was noted while it was built."""

    module: "nn.Module"
    held: Walk
    twins: Twins
    places: Places


@dataclass(frozen=True, slots=True, eq=False)
class Builds:
    """The same module built twice."""

    first: Build
    second: Build | None
    """None where only one could be built."""
    skipped: tuple[Skipped, ...]


@contextmanager
def random_state() -> Iterator[None]:
    """Restore the random generators of Python, numpy and torch at the end, exactly."""
    import torch

    numpy = sys.modules.get("numpy")
    python, legacy = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(_cuda_devices()):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(legacy)


def build(spec: ModuleSpec, function: Callable[..., Any]) -> Builds:
    """Build the module twice with its parameters on meta, or with real ones where that won't do.

    Raises:
        ModuleError: it cannot be built, or what was built is no module.
    """
    given = arguments(spec, function)
    skipped: list[Skipped] = []
    try:
        first = _one(spec, function, given, SEEDS[0], on_meta=True)
    except (UserCodeError, ModuleError) as error:
        reason = f"with its parameters on meta it cannot be built ({_reason(error)})"
    else:
        lacking = _lacking(first.held)
        if not lacking:
            return _twice(spec, function, given, first, skipped, on_meta=True)
        reason = f"the value of `{lacking}` depends on its parameters"
        needed = _meta_bytes(first.held)
        if needed > REAL_BUILD_BYTES:
            skipped.append(Skipped("values", f"{reason}, and those take {needed / 2**30:.0f} GiB"))
            return _twice(spec, function, given, first, skipped, on_meta=True)
        del first
    try:
        real = _one(spec, function, given, SEEDS[0], on_meta=False)
    except UserCodeError as error:
        raise failure(spec, function, error) from error
    skipped.append(Skipped("building without weights", f"{reason}: it was built with real ones"))
    return _twice(spec, function, given, real, skipped, on_meta=False)


def build_under(spec: ModuleSpec, function: Callable[..., Any], seed: int) -> "nn.Module":
    """Build the module once, with real values, under `seed`.

    Raises:
        ModuleError: it cannot be built, or what was built is no module.
    """
    given = arguments(spec, function)
    try:
        return _one(spec, function, given, seed, on_meta=False).module
    except UserCodeError as error:
        raise failure(spec, function, error) from error


def _reason(error: UserCodeError | ModuleError) -> str:
    return error.reason if isinstance(error, ModuleError) else str(error)


def _twice(
    spec: ModuleSpec,
    function: Callable[..., Any],
    given: dict[str, object],
    first: Build,
    skipped: list[Skipped],
    *,
    on_meta: bool,
) -> Builds:
    second: Build | None = None
    try:
        # What it has to warn of was said the first time.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            second = _one(spec, function, given, SEEDS[1], on_meta=on_meta)
    except UserCodeError as error:
        skipped.append(Skipped("constancy", f"building it a second time raised {error}"))
    if second is not None and second.module is first.module:
        skipped.append(Skipped("constancy", "every call gives the same instance"))
        second = None
    return Builds(first, second, tuple(skipped))


def _one(
    spec: ModuleSpec,
    function: Callable[..., Any],
    given: dict[str, object],
    seed: int,
    *,
    on_meta: bool,
) -> Build:
    from torch import nn

    twins, places = Twins(), Places(__file__)
    with watched(places, twins if on_meta else None), user_code():
        _seed(seed)
        module = function(**_own(given))
    if not isinstance(module, nn.Module):
        raise ModuleError(
            spec.target,
            f"gave a {type(module).__name__}, not an nn.Module: "
            "name a class, a function that returns one, or an instance",
        )
    with user_code():
        return Build(module, walk(module), twins, places)


def _cuda_devices() -> range:
    """Return the devices with a generator to restore: none as long as CUDA has not started."""
    from torch import cuda

    started: Callable[[], bool] = cuda.is_initialized
    return range(cuda.device_count()) if started() else range(0)


def _own(given: dict[str, object]) -> dict[str, object]:
    """Return a copy, so that one build cannot change the arguments of the next or share them."""
    try:
        with user_code():
            return copy.deepcopy(given)
    except UserCodeError:
        return given


def _seed(seed: int) -> None:
    import torch

    random.seed(seed)
    # Not torch.manual_seed(): it would also leave a seed for a CUDA that is not started yet.
    torch.default_generator.manual_seed(seed)
    if _cuda_devices():
        torch.cuda.manual_seed_all(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed)


def _lacking(held: Walk) -> str:
    """Return the path of a tensor that has no value because the parameters have none."""
    from torch import Tensor

    storages = Storages()
    tensors = [found for found in held.found if isinstance(found.value, Tensor)]
    parameters = [f.value for f in tensors if f.registered and f.kind is Kind.PARAMETER]
    known = {storages.identity(parameter) for parameter in parameters}
    for found in tensors:
        if found.value.is_meta and storages.identity(found.value) not in known:
            return found.path
    # torch passes over it in silence where this parametrisation cannot be set up on meta.
    unset = (path for path, owner in held.none_buffers.items() if owner == _ORTHOGONAL)
    return next(unset, "")


def _meta_bytes(held: Walk) -> int:
    from torch import Tensor

    values = [found.value for found in held.found if isinstance(found.value, Tensor)]
    return sum(size(value) for value in values if value.is_meta)

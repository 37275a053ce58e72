"""ModuleSpec -> BuildPair: construct a module under two seeds, with its parameters on meta."""

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
"""Maximum bytes of parameters for a build with real values."""

_ORTHOGONAL: Final = "torch.nn.utils.parametrizations._Orthogonal"


@dataclass(frozen=True, slots=True, eq=False)
class Build:
    """One constructed module, with its tensors and its recorded assignments."""

    module: "nn.Module"
    held: Walk
    twins: Twins
    places: Places


@dataclass(frozen=True, slots=True, eq=False)
class Builds:
    """The same module constructed under both seeds."""

    first: Build
    second: Build | None
    """None if the second construction raised, or returned the same instance."""
    skipped: tuple[Skipped, ...]


@contextmanager
def random_state() -> Iterator[None]:
    """Restore the random generators of Python, numpy and torch on exit."""
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
    """Build the module twice, with parameters on meta if possible, else with real parameters.

    Raises:
        ModuleError: construction raised, or returned something other than an nn.Module.
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
    """Build the module once, with real parameters, under `seed`.

    Raises:
        ModuleError: construction raised, or returned something other than an nn.Module.
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
        # The first build already showed these warnings.
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
    """Return the CUDA devices with a generator to restore: none before CUDA is initialized."""
    from torch import cuda

    started: Callable[[], bool] = cuda.is_initialized
    return range(cuda.device_count()) if started() else range(0)


def _own(given: dict[str, object]) -> dict[str, object]:
    """Return a deep copy, so that builds do not share arguments; the original if copying raises."""
    try:
        with user_code():
            return copy.deepcopy(given)
    except UserCodeError:
        return given


def _seed(seed: int) -> None:
    import torch

    random.seed(seed)
    # Not torch.manual_seed(): it would also queue a seed for CUDA before its initialization.
    torch.default_generator.manual_seed(seed)
    if _cuda_devices():
        torch.cuda.manual_seed_all(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed)


def _lacking(held: Walk) -> str:
    """Return the path of a tensor without a value because parameters are on meta, "" if none."""
    from torch import Tensor

    storages = Storages()
    tensors = [found for found in held.found if isinstance(found.value, Tensor)]
    parameters = [f.value for f in tensors if f.registered and f.kind is Kind.PARAMETER]
    known = {storages.identity(parameter) for parameter in parameters}
    for found in tensors:
        if found.value.is_meta and storages.identity(found.value) not in known:
            return found.path
    # torch skips this parametrisation silently if it cannot be set up on meta.
    unset = (path for path, owner in held.none_buffers.items() if owner == _ORTHOGONAL)
    return next(unset, "")


def _meta_bytes(held: Walk) -> int:
    from torch import Tensor

    values = [found.value for found in held.found if isinstance(found.value, Tensor)]
    return sum(size(value) for value in values if value.is_meta)

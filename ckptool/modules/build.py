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
from ckptool.model import CONSTANCY_CHECK, Kind, Skipped
from ckptool.modules.assignment_hooks import hook_assignments
from ckptool.modules.assignment_locations import AssignmentLocations
from ckptool.modules.import_target import ModuleSpec, bind_arguments, make_build_error
from ckptool.modules.meta_parameters import MetaParameters
from ckptool.modules.tensors.elements import count_bytes
from ckptool.modules.tensors.tensor_info import ModuleStorages
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import ModuleWalk, walk_module

if TYPE_CHECKING:
    from torch import nn

SEEDS: Final = (0, 1)
REAL_BUILD_BYTES: Final = 8 << 30
"""Maximum bytes of parameters for a build with real values."""

_ORTHOGONAL: Final = "torch.nn.utils.parametrizations._Orthogonal"


@dataclass(frozen=True, slots=True, eq=False)
class ModuleBuild:
    """One constructed module, with its tensors and its recorded assignments."""

    module: "nn.Module"
    walk: ModuleWalk
    meta_parameters: MetaParameters
    assignment_locations: AssignmentLocations
    needs_cuda: bool = False
    """Whether the constructor puts tensors on a CUDA device, and there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class BuildPair:
    """The same module constructed under both seeds."""

    first: ModuleBuild
    second: ModuleBuild | None
    """None if the second construction raised, or returned the same instance."""
    skipped: tuple[Skipped, ...]


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the random generators of Python, numpy and torch on exit."""
    import torch

    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(_list_cuda_devices()):
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)


def build_twice(spec: ModuleSpec, function: Callable[..., Any]) -> BuildPair:
    """Build the module twice, with parameters on meta if possible, else with real parameters.

    Raises:
        ModuleError: construction raised, or returned something other than an nn.Module.
    """
    kwargs = bind_arguments(spec, function)
    skipped: list[Skipped] = []
    try:
        first = _build_once(spec, function, kwargs, SEEDS[0], on_meta=True)
    except (UserCodeError, ModuleError) as error:
        reason = f"it cannot be built with its parameters on meta ({_format_reason(error)})"
    else:
        missing_path = _find_missing_value(first.walk)
        if not missing_path and not first.meta_parameters.lost_loads:
            return _add_second_build(spec, function, kwargs, first, skipped, on_meta=True)
        reason = (
            f"the value of `{missing_path}` depends on its parameters"
            if missing_path
            else "its constructor loads weights"
        )
        nbytes = _count_meta_bytes(first.walk)
        if nbytes > REAL_BUILD_BYTES:
            skipped.append(Skipped("values", f"{reason}, and they take {nbytes / 2**30:.0f} GiB"))
            return _add_second_build(spec, function, kwargs, first, skipped, on_meta=True)
        del first
    try:
        real_build = _build_once(spec, function, kwargs, SEEDS[0], on_meta=False)
    except UserCodeError as error:
        raise make_build_error(spec, function, error, kwargs) from error
    skipped.append(Skipped("building without weights", f"{reason}: it was built with real ones"))
    return _add_second_build(spec, function, kwargs, real_build, skipped, on_meta=False)


def build_with_seed(spec: ModuleSpec, function: Callable[..., Any], seed: int) -> "nn.Module":
    """Build the module once, with real parameters, under `seed`.

    Raises:
        ModuleError: construction raised, or returned something other than an nn.Module.
    """
    kwargs = bind_arguments(spec, function)
    try:
        return _build_once(spec, function, kwargs, seed, on_meta=False).module
    except UserCodeError as error:
        raise make_build_error(spec, function, error) from error


def _format_reason(error: UserCodeError | ModuleError) -> str:
    return error.reason if isinstance(error, ModuleError) else str(error)


def _add_second_build(
    spec: ModuleSpec,
    function: Callable[..., Any],
    kwargs: dict[str, object],
    first: ModuleBuild,
    skipped: list[Skipped],
    *,
    on_meta: bool,
) -> BuildPair:
    from ckptool.modules.tensors.uninitialized import UninitializedMemoryFill

    second: ModuleBuild | None = None
    try:
        # The first build already showed these warnings.
        with warnings.catch_warnings(), UninitializedMemoryFill():
            warnings.simplefilter("ignore")
            second = _build_once(spec, function, kwargs, SEEDS[1], on_meta=on_meta)
    except UserCodeError as error:
        skipped.append(Skipped(CONSTANCY_CHECK, f"building it a second time raised {error}"))
    if second is not None and second.module is first.module:
        skipped.append(Skipped(CONSTANCY_CHECK, "every call returns the same instance"))
        second = None
    if first.needs_cuda:
        reason = "its constructor puts tensors on a CUDA device: here they are on the CPU"
        skipped.append(Skipped("building on CUDA", reason))
    return BuildPair(first, second, tuple(skipped))


def _build_once(
    spec: ModuleSpec,
    function: Callable[..., Any],
    kwargs: dict[str, object],
    seed: int,
    *,
    on_meta: bool,
) -> ModuleBuild:
    from torch import nn

    from ckptool.modules.world.cuda_on_cpu import call_constructor

    meta_parameters, locations = MetaParameters(), AssignmentLocations(__file__)
    with hook_assignments(locations, meta_parameters if on_meta else None), user_code():
        seed_generators(seed)
        module, needs_cuda = call_constructor(function, _copy_arguments(kwargs))
    if not isinstance(module, nn.Module):
        raise ModuleError(
            spec.target,
            f"gave a {type(module).__name__}, not an nn.Module: give a class, a function that "
            "returns one, or an instance",
        )
    with user_code():
        return ModuleBuild(module, walk_module(module), meta_parameters, locations, needs_cuda)


def _list_cuda_devices() -> range:
    """Return the CUDA devices with a generator to restore: none before CUDA is initialized."""
    from torch import cuda

    is_initialized: Callable[[], bool] = cuda.is_initialized
    return range(cuda.device_count()) if is_initialized() else range(0)


def _copy_arguments(kwargs: dict[str, object]) -> dict[str, object]:
    """Return a deep copy, so that builds do not share arguments; the original if copying raises."""
    try:
        with user_code():
            return copy.deepcopy(kwargs)
    except UserCodeError:
        return kwargs


def seed_generators(seed: int) -> None:
    """Seed the generators of Python and torch, of CUDA if initialized, of numpy if imported."""
    import torch

    random.seed(seed)
    # Not torch.manual_seed(): it would also queue a seed for CUDA before its initialization.
    torch.default_generator.manual_seed(seed)
    if _list_cuda_devices():
        torch.cuda.manual_seed_all(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed)


def _find_missing_value(module_walk: ModuleWalk) -> str:
    """Return the path of a tensor without a value because parameters are on meta, "" if none."""
    from torch import Tensor

    storages = ModuleStorages()
    tensors = [
        found_tensor
        for found_tensor in module_walk.tensors
        if isinstance(found_tensor.value, Tensor)
    ]
    parameters = [f.value for f in tensors if f.is_registered and f.kind is Kind.PARAMETER]
    parameter_storages = {storages.identify_storage(parameter) for parameter in parameters}
    for found_tensor in tensors:
        if (
            found_tensor.value.is_meta
            and storages.identify_storage(found_tensor.value) not in parameter_storages
        ):
            return found_tensor.path
    # torch skips this parametrisation silently if it cannot be set up on meta.
    unset_paths = (path for path, owner in module_walk.none_buffers.items() if owner == _ORTHOGONAL)
    return next(unset_paths, "")


def count_parameter_bytes(module_walk: ModuleWalk) -> int:
    """Return the size of the registered parameters in bytes."""
    return sum(
        count_bytes(found_tensor.value)
        for found_tensor in module_walk.tensors
        if found_tensor.is_registered and found_tensor.kind is Kind.PARAMETER
    )


def _count_meta_bytes(module_walk: ModuleWalk) -> int:
    from torch import Tensor

    values = [
        found_tensor.value
        for found_tensor in module_walk.tensors
        if isinstance(found_tensor.value, Tensor)
    ]
    return sum(count_bytes(value) for value in values if value.is_meta)

"""VerificationTarget x RunDevice x Inputs -> Verification: run all levels in order."""

from typing import Final

from msgspec.structs import replace
from torch import nn

from ckptool.compare.module_diff import ModuleDiff, strict_load_obstacles
from ckptool.errors import ModuleError, ReadError
from ckptool.loaders.diffusers_models import is_pipeline
from ckptool.loaders.registry import get_loader
from ckptool.model import Kind, Skipped
from ckptool.phrases import join_limited, quote_code
from ckptool.verification import inputs as input_sources
from ckptool.verification.backends import cpu
from ckptool.verification.forward_pass import Inputs
from ckptool.verification.levels import device_and_forward, load
from ckptool.verification.levels.device_and_forward import ForwardResults, RunDevice
from ckptool.verification.levels.equality import OldNewPair, check_equality
from ckptool.verification.levels.load import LoadedModuleFactory
from ckptool.verification.levels.round_trip import check_persistence, check_round_trip
from ckptool.verification.loading import pickled_attributes
from ckptool.verification.module_fault import explain_module_fault
from ckptool.verification.result import (
    DeviceMismatch,
    LevelResult,
    LevelStatus,
    Verification,
    VerificationLevel,
)
from ckptool.verification.target import VerificationTarget

_MAX_SHOWN: Final = 3
_SIMULATION_LIMITS: Final = Skipped(
    "a real CUDA device",
    "a simulated device checks where tensors are, not CUDA's arithmetic, kernels, memory or "
    "autocast",
)


def run_verification(
    new: VerificationTarget,
    device: RunDevice,
    inputs: Inputs | None,
    old: VerificationTarget | None = None,
    tolerance: float | None = None,
) -> Verification:
    """Run all levels; a level that cannot be run is skipped with a reason, never passed.

    Raises:
        ModuleError: the module cannot be built.
        ReadError: tensors of a checkpoint cannot be read.
        UsageError: forward does not accept `inputs`.
    """
    loaded_factory = _load_tensors(new)
    if isinstance(loaded_factory, LevelResult):
        return _build_unloaded_verification(new, device, loaded_factory)
    load_result, meta_result = (
        load.check_strict_load(loaded_factory),
        load.check_meta_load(loaded_factory),
    )
    try:
        usable_inputs, reason = select_inputs(loaded_factory, inputs)
    except ModuleError:
        if load_result.status is not LevelStatus.FAILED:
            raise
        return _build_unloaded_verification(new, device, load_result)
    forward_results = _run_forward(loaded_factory, device, usable_inputs) if usable_inputs else None
    if usable_inputs and forward_results:
        reason = _explain_unfit_inputs(loaded_factory, usable_inputs, forward_results)
        if reason:
            usable_inputs, forward_results = None, None
    device_levels = (
        forward_results.levels
        if forward_results
        else device_and_forward.skip_device_levels(
            device, reason, _find_staying_tensors(new.module_diff)
        )
    )
    equality_result = _run_equality(old, forward_results, device, usable_inputs, tolerance)
    round_trip_result, round_trip_difference = check_round_trip(
        loaded_factory, usable_inputs, reason
    )
    persistence_result, lost_paths = check_persistence(loaded_factory, new.module_info)
    return Verification(
        path=str(new.module_diff.checkpoint.path),
        module=new.factory.target,
        device=device.label,
        levels=explain_module_fault(
            (load_result, *device_levels, equality_result, round_trip_result, persistence_result),
            forward_results,
            device,
        ),
        device_mismatches=(
            tuple(
                _with_assignment(mismatch, new.module_diff)
                for mismatch in forward_results.device_mismatches
            )
            if forward_results
            else ()
        ),
        round_trip_difference=round_trip_difference,
        uninitialized_buffers=new.module_diff.module.uninitialized_buffers,
        uninitialized_paths=meta_result.uninitialized_paths,
        broken_ties=meta_result.broken_ties,
        lost_paths=lost_paths,
        notes=(f"input: {usable_inputs.source}",) if usable_inputs else (),
        skipped=(
            *new.module_diff.checkpoint.skipped,
            *meta_result.skipped,
            *_list_idle_models(usable_inputs),
            *_list_simulation_limits(device),
        ),
    )


def _load_tensors(target: VerificationTarget) -> LoadedModuleFactory | LevelResult:
    """Load the file's tensors; return the level "load" if torch does not load them.

    Raises:
        ReadError: the file cannot be read, and nothing else is known of the load.
    """
    module_diff = target.module_diff
    failure = LevelResult(
        VerificationLevel.LOAD, LevelStatus.FAILED, strict_load_obstacles(module_diff), "cpu"
    )
    loading_info = module_diff.loading_info
    if module_diff.checkpoint.load_refusal or (loading_info is not None and loading_info.error):
        return failure
    try:
        return load.load_module_factory(target.factory, module_diff)
    except ReadError as error:
        if not module_diff.is_strict:
            return failure
        if module_diff.unchecked_load is not None:
            return LevelResult(VerificationLevel.LOAD, LevelStatus.INCONCLUSIVE, error.reason)
        raise


def _build_unloaded_verification(
    target: VerificationTarget, device: RunDevice, load_result: LevelResult
) -> Verification:
    """Return the result for a file that does not load into the module: no other level can run."""
    is_failed = load_result.status is LevelStatus.FAILED
    reason = "the file does not load" if is_failed else "the file could not be loaded here"
    skipped_levels = (
        LevelResult(level, LevelStatus.SKIPPED, reason)
        for level in VerificationLevel
        if level is not VerificationLevel.LOAD
    )
    return Verification(
        path=str(target.module_diff.checkpoint.path),
        module=target.factory.target,
        device=device.label,
        levels=(load_result, *skipped_levels),
        uninitialized_buffers=target.module_diff.module.uninitialized_buffers,
        skipped=target.module_diff.checkpoint.skipped,
    )


def select_inputs(
    loaded_factory: LoadedModuleFactory, inputs: Inputs | None
) -> tuple[Inputs | None, str]:
    """Return the inputs for forward and "", or None and why there are none."""
    module = loaded_factory.create_module()
    candidate_inputs = inputs if inputs is not None else _make_own_inputs(loaded_factory, module)
    if isinstance(candidate_inputs, str):
        return None, candidate_inputs
    if inputs is not None:
        input_sources.require_matching_inputs(module, candidate_inputs)
    reason = input_sources.find_signature_mismatch(module, candidate_inputs)
    return (None, reason) if reason else (candidate_inputs, "")


def _make_own_inputs(loaded_factory: LoadedModuleFactory, module: nn.Module) -> Inputs | str:
    """Return the inputs that a framework's configuration allows, else the module's examples."""
    loader = loaded_factory.module_diff.module.loader
    values = {} if loader == "torch" else get_loader(loader).make_inputs(module)
    if values:
        source = f"made by its configuration: {', '.join(values)}"
        idle_models = (
            tuple(name for name, _ in module.named_children() if name not in values)
            if is_pipeline(module)
            else ()
        )
        return Inputs((), dict(values), source, idle_models, is_assumed=True)
    return input_sources.inputs_from_module(module)


def _list_idle_models(inputs: Inputs | None) -> tuple[Skipped, ...]:
    reason = "what it takes is not in its configuration: verify its folder, with --input"
    names = () if inputs is None else inputs.idle_models
    return tuple(Skipped(f"forward of {name}", reason) for name in names)


def _run_forward(
    loaded_factory: LoadedModuleFactory, device: RunDevice, inputs: Inputs
) -> ForwardResults:
    return device_and_forward.run_device_levels(device, loaded_factory.create_module, inputs)


def _explain_unfit_inputs(
    loaded_factory: LoadedModuleFactory, inputs: Inputs, forward_results: ForwardResults
) -> str:
    """Return why inputs that nobody gave prove nothing, "" if they do.

    What forward raises with them is the checkpoint's only if the initial values do not raise it.
    """
    error = forward_results.cpu_pass.error
    if error is None or not inputs.is_assumed:
        return ""
    if cpu.run_on_cpu(loaded_factory.factory.create_module(), inputs).error is None:
        return ""
    return (
        f"forward raises {error}, also with the module's initial values, so that this input does"
        f" not fit ({inputs.source}): pass --input or --inputs"
    )


def _run_equality(
    old: VerificationTarget | None,
    forward_results: ForwardResults | None,
    device: RunDevice,
    inputs: Inputs | None,
    tolerance: float | None,
) -> LevelResult:
    if old is None:
        return LevelResult(
            VerificationLevel.EQUALITY, LevelStatus.SKIPPED, "nothing to compare with: pass --old"
        )
    if forward_results is None or inputs is None:
        return LevelResult(
            VerificationLevel.EQUALITY, LevelStatus.SKIPPED, "no input to run them with"
        )
    old_factory = load.load_module_factory(old.factory, old.module_diff)
    if not old.module_diff.is_strict and not load.loads_with_rewritten_keys(old_factory):
        reason = (
            "the old checkpoint does not load into the old module: give that module with "
            "--old-module"
        )
        return LevelResult(VerificationLevel.EQUALITY, LevelStatus.INCONCLUSIVE, reason)

    def create_old_module() -> nn.Module:
        old_module = old_factory.create_module()
        pickled_attributes.restore_attributes(old_module, old.pickled_tensors)
        return old_module

    module = create_old_module()
    restored_paths = pickled_attributes.find_restorable_paths(module, old.pickled_tensors)
    old_cpu_pass = cpu.run_on_cpu(module, inputs)
    old_device_pass = (
        device_and_forward.run_on_device(device, create_old_module(), inputs)
        if forward_results.device_pass
        else None
    )
    result = check_equality(
        OldNewPair(old_cpu_pass, forward_results.cpu_pass),
        OldNewPair(old_device_pass, forward_results.device_pass),
        device,
        tolerance,
    )
    return _with_origin_details(result, old, restored_paths)


def _with_origin_details(
    result: LevelResult, old: VerificationTarget, restored_paths: tuple[str, ...]
) -> LevelResult:
    """Add how the old file's keys were renamed, and the origin of the module's unsaved tensors."""
    rewrite = old.module_diff.rewrite
    if rewrite is not None and rewrite.key_map:
        old_key, key = next(iter(rewrite.key_map.items()))
        text = f"keys of the old file renamed for the old module: {_format_keys((old_key,))}"
        text += f" -> {_format_keys((key,))}"
        text += f" and {len(rewrite.key_map) - 1} more" if len(rewrite.key_map) > 1 else ""
        result = replace(result, details=(*result.details, text))
    if restored_paths:
        text = (
            "attributes that were pickled with the old module were restored:"
            f" {_format_keys(restored_paths)}"
        )
        result = replace(result, details=(*result.details, text))
    lost_keys = tuple(
        key for key in old.module_diff.module.unsaved_tensors if key not in restored_paths
    )
    if result.status is LevelStatus.FAILED and lost_keys:
        text = (
            f"the old file has no value of {_format_keys(lost_keys)}, so the one from the old "
            "module's constructor was used: a pickled module would have the trained value"
        )
        result = replace(result, reason=f"{result.reason}; {text}")
    return result


def _format_keys(keys: tuple[str, ...]) -> str:
    return join_limited(keys, _MAX_SHOWN, quote_code)


def _with_assignment(mismatch: DeviceMismatch, module_diff: ModuleDiff) -> DeviceMismatch:
    module_tensor = module_diff.module.tensors.get(mismatch.attribute)
    return replace(mismatch, held_tensor=module_tensor)


def _find_staying_tensors(module_diff: ModuleDiff) -> tuple[str, ...]:
    module_tensors = module_diff.module.unsaved_tensors.values()
    return tuple(
        module_tensor.key
        for module_tensor in module_tensors
        if not module_tensor.follows_to and module_tensor.kind is not Kind.ARRAY
    )


def _list_simulation_limits(device: RunDevice) -> tuple[Skipped, ...]:
    return (_SIMULATION_LIMITS,) if device.kind == "simulated" else ()

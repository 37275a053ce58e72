"""Save and load into another instance -> levels "round trip" and "persistence"."""

import io
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ckptool.compare.framework.framework_load import is_remade_by_framework
from ckptool.errors import ModuleError
from ckptool.folding import fold_names
from ckptool.model import Constancy, Kind, ModuleInfo
from ckptool.modules.target.rebuild import UNKNOWN_ARGUMENTS
from ckptool.modules.tensors.elements import have_same_bytes
from ckptool.modules.tensors.tensor_parts import is_lazy, list_memory_tensors
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import walk_module
from ckptool.phrases import join_limited, quote_code
from ckptool.verification.backends import cpu
from ckptool.verification.forward_pass import Inputs
from ckptool.verification.levels.load import LoadedModuleFactory, load_matching_tensors
from ckptool.verification.module_factory import ModuleFactory
from ckptool.verification.output_diff import compare_outputs
from ckptool.verification.result import LevelResult, LevelStatus, VerificationLevel

_OTHER_SEED = 1


class InstanceFactory(Protocol):
    """Creates equal instances; its `factory` builds others under another seed."""

    @property
    def factory(self) -> ModuleFactory: ...

    @property
    def separates_ties(self) -> bool:
        """Whether loading leaves tied tensors separate if their values in the file differ."""
        ...

    def create_module(self) -> nn.Module: ...


def check_round_trip(
    instance_factory: InstanceFactory, inputs: Inputs | None, reason: str
) -> tuple[LevelResult, str]:
    """Save, load into an instance built under another seed, and compare the outputs of both.

    Returns:
        The level, and the difference of the outputs as text, "" if none.
    """
    factory = instance_factory.factory
    if inputs is None or not factory.can_rebuild:
        skip_reason = reason if inputs is None else factory.obstacle
        return LevelResult(VerificationLevel.ROUND_TRIP, LevelStatus.SKIPPED, skip_reason), ""
    module = instance_factory.create_module()
    try:
        reloaded_module = _save_and_reload(instance_factory, module)
    except (ModuleError, UserCodeError) as error:
        return _build_result(LevelStatus.FAILED, f"saving and loading raised {error}"), ""
    first_pass, second_pass = (
        cpu.run_on_cpu(module, inputs),
        cpu.run_on_cpu(reloaded_module, inputs),
    )
    pass_error = first_pass.error or second_pass.error
    if pass_error is not None:
        return _build_result(
            LevelStatus.INCONCLUSIVE, f"the pass on the CPU raised {pass_error}"
        ), ""
    output_difference = compare_outputs(second_pass.output, first_pass.output)
    if output_difference.is_exact:
        return _build_result(LevelStatus.PASSED, "", (output_difference.summary,)), ""
    repeat_difference = compare_outputs(
        cpu.run_on_cpu(instance_factory.create_module(), inputs).output, first_pass.output
    )
    text = f"{output_difference.first_difference}, {output_difference.summary}"
    doubt = f"{text}, or {UNKNOWN_ARGUMENTS}" if factory.is_guess else ""
    if not repeat_difference.is_exact:
        doubt = "two passes of the same module with the same seed differ"
    if doubt:
        return _build_result(LevelStatus.INCONCLUSIVE, doubt), ""
    return _build_result(LevelStatus.FAILED, text), text


def _build_result(status: LevelStatus, reason: str, details: tuple[str, ...] = ()) -> LevelResult:
    return LevelResult(VerificationLevel.ROUND_TRIP, status, reason, "cpu", details)


def check_persistence(
    loaded_factory: LoadedModuleFactory, module_info: ModuleInfo
) -> tuple[LevelResult, tuple[str, ...]]:
    """Change all state, save, load into a new instance, and find state that was not restored.

    Returns:
        The level, and the paths of lost state; without buffers that are meant not to be saved.
    """
    factory = loaded_factory.factory
    if not factory.can_rebuild:
        return LevelResult(VerificationLevel.PERSISTENCE, LevelStatus.SKIPPED, factory.obstacle), ()
    try:
        module = loaded_factory.create_module()
        with torch.no_grad(), user_code():
            unchanged_paths = _change_state(module)
        reloaded_module = _save_and_reload(loaded_factory, module)
        with user_code():
            lost_paths = _find_lost_paths(module, reloaded_module)
    except (ModuleError, UserCodeError) as error:
        failure = f"changing, saving and loading raised {error}"
        return LevelResult(
            VerificationLevel.PERSISTENCE, LevelStatus.INCONCLUSIVE, failure, "cpu"
        ), ()
    loading_info = loaded_factory.module_diff.loading_info
    known_paths = () if loading_info is None else loading_info.restored_paths
    restored_paths = tuple(path for path in lost_paths if path in known_paths)
    rebuilt_paths = tuple(path for path in lost_paths if _is_rebuilt(module_info, path))
    accounted_paths = {*restored_paths, *rebuilt_paths}
    unexpected_paths = tuple(path for path in lost_paths if path not in accounted_paths)
    details = (
        *_list_details("not in the state_dict, and loaded from the file", restored_paths),
        *_list_details("not saved, as registered, and recreated by the constructor", rebuilt_paths),
        *_list_details("not tried, because its values cannot be changed in place", unchanged_paths),
    )
    if unexpected_paths:
        reason = f"changes are lost by saving and loading: {_format_paths(unexpected_paths)}"
        if factory.is_guess:
            doubt = f"{reason}, or {UNKNOWN_ARGUMENTS}"
            return LevelResult(
                VerificationLevel.PERSISTENCE, LevelStatus.INCONCLUSIVE, doubt, "cpu", details
            ), ()
        return (
            LevelResult(VerificationLevel.PERSISTENCE, LevelStatus.FAILED, reason, "cpu", details),
            unexpected_paths,
        )
    return LevelResult(VerificationLevel.PERSISTENCE, LevelStatus.PASSED, "", "cpu", details), ()


def _list_details(text: str, paths: tuple[str, ...]) -> tuple[str, ...]:
    return (f"{text}: {_format_paths(paths)}",) if paths else ()


def _save_and_reload(instance_factory: InstanceFactory, module: nn.Module) -> nn.Module:
    """Return an instance built under another seed, with the state of `module` saved and loaded."""
    reloaded_module = instance_factory.factory.construct_module(_OTHER_SEED)
    file = io.BytesIO()
    with user_code():
        torch.save(module.state_dict(), file)
        file.seek(0)
        state_dict: Mapping[str, Any] = torch.load(file, weights_only=True)
        _cast_tensors(reloaded_module, state_dict)
        if instance_factory.separates_ties:
            _separate_tensors(reloaded_module, module)
    load_matching_tensors(reloaded_module, state_dict, instance_factory.factory.target)
    return reloaded_module


def _cast_tensors(module: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Give the tensors of `module` the dtypes of the state, as a framework builds them for a file.

    `load_state_dict` alone never changes a dtype: there is nothing to cast.
    """
    for key, tensor in module.state_dict(keep_vars=True).items():
        saved = state_dict.get(key)
        if isinstance(saved, Tensor) and isinstance(tensor, Tensor) and saved.dtype != tensor.dtype:
            tensor.data = tensor.data.to(saved.dtype)


def _separate_tensors(module: nn.Module, loaded_module: nn.Module) -> None:
    """Untie the parameters of `module` that are separate in `loaded_module`, for the load."""
    separate_tensors = loaded_module.state_dict(keep_vars=True)
    first_keys: dict[int, str] = {}
    for key, tensor in module.state_dict(keep_vars=True).items():
        first_key = first_keys.setdefault(id(tensor), key)
        is_separate = separate_tensors.get(key) is not separate_tensors.get(first_key)
        if is_separate and isinstance(tensor, nn.Parameter):
            path, _, name = key.rpartition(".")
            copy = nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
            setattr(module.get_submodule(path), name, copy)


def _change_state(module: nn.Module) -> tuple[str, ...]:
    """Change every storage and every array that `module` holds, each once.

    Of a tensor in several parts only floating point is changed: its integers may be positions.

    Returns:
        The paths of tensors that have elements, of which none could be changed.
    """
    visited_addresses: set[int] = set()
    unchanged_paths: list[str] = []
    for found_tensor in walk_module(module).tensors:
        value = found_tensor.value
        if not isinstance(value, Tensor):
            if value.dtype.kind in "biufc" and value.flags.writeable:
                value[...] = value + 1 if value.dtype.kind != "b" else ~value
            continue
        changeable_tensors = [
            tensor
            for tensor in list_memory_tensors(value)
            if tensor is value or tensor.dtype.is_floating_point
        ]
        for tensor in changeable_tensors:
            address = tensor.untyped_storage().data_ptr()
            if address not in visited_addresses:
                visited_addresses.add(address)
                _change_elements(_view_storage(tensor))
        if not changeable_tensors and not is_lazy(value) and value.numel():
            unchanged_paths.append(found_tensor.path)
    return tuple(unchanged_paths)


def _view_storage(tensor: Tensor) -> Tensor:
    """Return a 1-D view of the whole storage of `tensor`, in its dtype."""
    storage = tensor.untyped_storage()
    count = storage.nbytes() // tensor.element_size()
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, (count,), (1,))


def _change_elements(flat: Tensor) -> None:
    if flat.dtype == torch.bool:
        flat.logical_not_()
    elif flat.dtype.itemsize == 1 and flat.dtype.is_floating_point:
        # No arithmetic for 8-bit floats: flip a bit instead.
        flat.view(torch.uint8).bitwise_xor_(1)
    else:
        changed_elements = flat + 1
        if flat.dtype.is_floating_point:
            # x + 1 leaves large numbers, infinity and NaN unchanged: set those to 0.
            changed_elements = torch.where(
                (changed_elements == flat) | ~torch.isfinite(flat),
                torch.zeros_like(flat),
                changed_elements,
            )
        flat.copy_(changed_elements)


def _find_lost_paths(module: nn.Module, reloaded_module: nn.Module) -> tuple[str, ...]:
    reloaded_values = {
        found_tensor.path: found_tensor.value
        for found_tensor in walk_module(reloaded_module).tensors
    }
    return tuple(
        found_tensor.path
        for found_tensor in walk_module(module).tensors
        if found_tensor.path not in reloaded_values
        or have_same_bytes(found_tensor.value, reloaded_values[found_tensor.path]) is False
    )


def _is_rebuilt(module_info: ModuleInfo, path: str) -> bool:
    """Whether every build recreates its value: that of a buffer, or of a framework's attribute."""
    module_tensor = module_info.tensors.get(path)
    if module_tensor is None:
        return False
    return is_remade_by_framework(module_tensor) or (
        module_tensor.kind is Kind.NON_PERSISTENT_BUFFER
        and module_tensor.constancy is Constancy.CONSTANT
        and path not in module_info.uninitialized_buffers
    )


def _format_paths(paths: tuple[str, ...]) -> str:
    return join_limited(fold_names(paths), 5, quote_code)

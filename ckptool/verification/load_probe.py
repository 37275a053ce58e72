"""nn.Module x StateDict -> LoadOutcome: what the module's own `load_state_dict` does with a state.

The loader is given tensors without data (on meta), so that nothing of the file's elements is read;
which file tensor went where is known by the storage that is there afterwards.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from ckptool.compare.load_outcome import LoadOutcome
from ckptool.compare.module_diff import ModuleDiff, apply_load_outcome, build_module_diff
from ckptool.errors import ReadError
from ckptool.locations import RemotePath
from ckptool.model import Checkpoint, ModuleInfo, Skipped, TensorInfo
from ckptool.modules.build import preserve_random_state
from ckptool.modules.move_probe import copy_to_meta
from ckptool.modules.tensor_info import is_lazy
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import walk_module
from ckptool.phrases import summarize_message
from ckptool.verification.copy_probe import find_copy_error
from ckptool.verification.load_tensors import load_tensors, load_with_torch

CHECK_NAME: Final = "the module's own loading code"
MAX_READ_NBYTES: Final = 256 << 20
"""Maximum size of a state whose values are read for loading code that looks at them."""
_NORM_MODULES: Final = ("torch.nn.modules.batchnorm", "torch.nn.modules.instancenorm")
_NEEDS_VALUES: Final = ("meta tensor", "Cannot copy out of", "on device meta", "'meta'", "no data")
"""Parts of torch's messages when code asks a tensor on meta for its values."""
_LOAD_ERRORS: Final = "Error(s) in loading state_dict"


def compare_with_loader(
    checkpoint: Checkpoint, module_info: ModuleInfo, module: nn.Module, at: str | None
) -> ModuleDiff:
    """Compare the state at `at` with the module, as its own `load_state_dict` would load it.

    Keys and shapes decide for a module that has no loading code of its own: that is torch's whole
    algorithm. Otherwise the code is asked; where it cannot be, the keys decide, and the check is
    among the module's `skipped`.

    Args:
        checkpoint: the file.
        module_info: description of `module`.
        module: an instance of the module; it is copied, not changed.
        at: place of the state; None takes the one that matches best.
    """
    diff = build_module_diff(checkpoint, module_info, at)
    if not diff.state.tensors:
        return diff
    outcome = _ask_loader(module, diff)
    if isinstance(outcome, Skipped):
        unchecked = replace(module_info, skipped=(*module_info.skipped, outcome))
        return replace(diff, module=unchecked, unchecked_load=outcome.reason)
    return diff if outcome is None else apply_load_outcome(diff, outcome)


def _ask_loader(module: nn.Module, diff: ModuleDiff) -> LoadOutcome | Skipped | None:
    """Return what the loader does; None if keys and shapes are all that it looks at."""
    prefixes = find_loading_code(module)
    is_asked = prefixes and not (
        diff.is_strict and all(_only_fills_keys(module.get_submodule(p)) for p in prefixes)
    )
    outcome = probe_load(module, diff) if is_asked else None
    if isinstance(outcome, Skipped) or (outcome is not None and not outcome.is_strict):
        return outcome
    # The probe assigns tensors, and a load copies them.
    copy_error = find_copy_error(diff)
    if isinstance(copy_error, Skipped):
        return copy_error
    if copy_error and any(_is_user_class(module.get_submodule(prefix)) for prefix in prefixes):
        return Skipped(CHECK_NAME, f"it may convert what torch cannot copy: {copy_error}")
    return LoadOutcome(copy_error, None, None) if copy_error else outcome


def _is_user_class(module: nn.Module) -> bool:
    return not type(module).__module__.startswith("torch.")


def _only_fills_keys(module: nn.Module) -> bool:
    """Whether it is one of torch's norm layers: their code acts only on keys that do not match."""
    return type(module).__module__ in _NORM_MODULES and not _has_hooks(module)


def check_own_load(module_info: ModuleInfo, module: nn.Module) -> ModuleInfo:
    """Return the description with what loading the module's own state_dict() into a copy raises.

    A module can write a key that it does not read, or ask for one that it leaves out. Torch's own
    classes read what they write.
    """
    parts = [module.get_submodule(prefix) for prefix in find_loading_code(module)]
    if not any(_is_user_class(part) or _has_hooks(part) for part in parts):
        return module_info
    try:
        with preserve_random_state(), user_code():
            state = _copy_module(module).state_dict()
        error, _ = _load(_copy_module(module), state, strict=True)
    except (UserCodeError, _ValuesNeededError) as caught:
        skipped = Skipped("loading the module's own state_dict()", str(caught))
        return replace(module_info, skipped=(*module_info.skipped, skipped))
    return replace(module_info, own_load_error=error)


def find_loading_code(module: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of sub-modules that load or save by more than nn.Module's own code.

    Without any, a state_dict is what is registered, and torch's comparison of keys and shapes is
    all that a load is.
    """
    return tuple(prefix for prefix, part in module.named_modules() if _has_loading_code(part))


def _has_loading_code(module: nn.Module) -> bool:
    cls = type(module)
    return bool(
        cls._load_from_state_dict is not nn.Module._load_from_state_dict  # noqa: SLF001
        or cls.load_state_dict is not nn.Module.load_state_dict
        or cls.set_extra_state is not nn.Module.set_extra_state
        or cls._save_to_state_dict is not nn.Module._save_to_state_dict  # noqa: SLF001
        or cls.state_dict is not nn.Module.state_dict
        or _has_hooks(module)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._state_dict_hooks  # noqa: SLF001
        or module._load_state_dict_pre_hooks  # noqa: SLF001
        or module._load_state_dict_post_hooks  # noqa: SLF001
    )


def probe_load(module: nn.Module, diff: ModuleDiff) -> LoadOutcome | Skipped:
    """Ask copies of `module` to load the state of `diff`; Skipped if they cannot be asked.

    Values are read only where the loading code needs them, and only of states of at most
    MAX_READ_NBYTES.

    Args:
        module: an instance of the module; it is copied, not changed.
        diff: what keys and shapes say. Keys that safetensors leaves out since they are tied are
            given under both names.
    """
    with preserve_random_state():
        try:
            return _probe_with_meta_tensors(module, diff)
        except UserCodeError as error:
            return Skipped(CHECK_NAME, f"copying the module raised {error}")
        except _ValuesNeededError as error:
            reason = str(error)
        nbytes = sum(tensor.nbytes for tensor in diff.state.tensors.values())
        if nbytes > MAX_READ_NBYTES or isinstance(diff.checkpoint.path, RemotePath):
            return Skipped(CHECK_NAME, f"it needs the file's values: {reason}")
        try:
            values = _with_retied(_load_values(diff), diff.retied_keys)
            return _run_loads(module, values, read_values=True)
        except (_ValuesNeededError, ReadError, UserCodeError) as error:
            return Skipped(CHECK_NAME, str(error))


def _probe_with_meta_tensors(module: nn.Module, diff: ModuleDiff) -> LoadOutcome:
    meta_state = _with_retied(_build_meta_state(diff), diff.retied_keys)
    return _run_loads(module, meta_state, read_values=False)


class _ValuesNeededError(Exception):
    """Loading code asked a tensor without data for its values."""


@dataclass(slots=True, eq=False)
class _KeyRecorder:
    """Records the keys that torch itself found missing and unexpected, before anybody drops them.

    An override may call `super().load_state_dict(strict=False)` and swallow them.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:  # noqa: ARG002
        self.missing += incompatible_keys.missing_keys
        self.unexpected += incompatible_keys.unexpected_keys


def _record_keys(module: nn.Module) -> _KeyRecorder:
    """Put a recorder before the post hooks of `module`, which may clear the lists."""
    recorder = _KeyRecorder()
    hooks: dict[int, Callable[..., Any]] = {-1: recorder}
    hooks |= module._load_state_dict_post_hooks  # noqa: SLF001
    module._load_state_dict_post_hooks = OrderedDict(hooks)  # noqa: SLF001
    return recorder


def _build_meta_state(diff: ModuleDiff) -> Mapping[str, Any]:
    """Return the argument of `load_state_dict` on meta.

    Raises:
        _ValuesNeededError: it has something else than dense tensors.
    """
    state = diff.state
    if non_tensor := _find_non_tensor(diff):
        raise _ValuesNeededError(f"`{non_tensor}` is no tensor")
    tensors: OrderedDict[str, Any] = OrderedDict()
    tensors_by_view: dict[object, Tensor] = {}
    for key, info in state.tensors.items():
        dtype = getattr(torch, info.dtype, None)
        if info.layout not in {"strided", "chunked"} or not isinstance(dtype, torch.dtype):
            raise _ValuesNeededError(f"`{key}` is {info.layout} {info.dtype}")
        view = _identify_view(key, info)
        if view not in tensors_by_view:
            tensors_by_view[view] = torch.empty(info.shape, dtype=dtype, device="meta")
        tensors[key] = tensors_by_view[view]
    if state.versions is not None:
        versions = {prefix: {"version": version} for prefix, version in state.versions.items()}
        tensors._metadata = OrderedDict(versions)  # type: ignore[attr-defined]  # noqa: SLF001
    return tensors


def _find_non_tensor(diff: ModuleDiff) -> str:
    """Return a key without a tensor in the file, or of values packed in a tuple; "" if none."""
    packed_keys = (key for key in diff.module.non_tensors if key not in diff.missing_non_tensors)
    return next(iter((*diff.state.non_tensors, *packed_keys)), "")


def _load_values(diff: ModuleDiff) -> Mapping[str, Any]:
    """Return the argument of `load_state_dict` with its values.

    Raises:
        ReadError: they cannot be read.
    """
    if _find_non_tensor(diff):
        return load_with_torch(diff.checkpoint, diff.state.at)
    return load_tensors(diff.checkpoint, diff.state, {})


def _identify_view(key: str, info: TensorInfo) -> object:
    """Return a value that is equal for keys that are one tensor in the file."""
    if info.storage is None:
        return key
    return info.storage, info.storage_offset, info.shape, info.stride, info.dtype


def _with_retied(tensors: Mapping[str, Any], retied_keys: Mapping[str, str]) -> Mapping[str, Any]:
    result = _copy_state(tensors)
    result.update({name: result[kept_key] for name, kept_key in retied_keys.items()})
    return result


def _run_loads(module: nn.Module, tensors: Mapping[str, Any], *, read_values: bool) -> LoadOutcome:
    """Load strictly into one copy; where that raises, load with strict=False into another.

    Raises:
        _ValuesNeededError: the loading code needs values, and `tensors` have none.
        UserCodeError: the module cannot be copied.
    """
    loaded = _copy_module(module)
    with user_code():
        initial_storages = _identify_storages(loaded)
    recorder = _record_keys(loaded)
    error, is_assigned = _load(loaded, tensors, strict=True)
    if error:
        lenient = _copy_module(module)
        recorder = _record_keys(lenient)
        lenient_error, _ = _load(lenient, tensors, strict=False)
        return LoadOutcome(
            error=error,
            missing_keys=tuple(recorder.missing) if not lenient_error else None,
            unexpected_keys=tuple(recorder.unexpected) if not lenient_error else None,
            has_read_values=read_values,
        )
    return LoadOutcome(
        missing_keys=tuple(recorder.missing),
        unexpected_keys=tuple(recorder.unexpected),
        sources=dict(_find_sources(loaded, tensors, initial_storages)) if is_assigned else {},
        has_read_values=read_values,
    )


def _copy_module(module: nn.Module) -> nn.Module:
    """Return a copy with parameters on meta, which take tensors of every dtype.

    Raises:
        UserCodeError: the module cannot be copied.
    """
    with user_code():
        copy = copy_to_meta(module, walk_module(module))
        # Assigned integers would be refused as "cannot require gradients"; copied, they are cast.
        return copy.requires_grad_(requires_grad=False)


def _copy_state(tensors: Mapping[str, Any]) -> "OrderedDict[str, Any]":
    """Return a shallow copy with `_metadata`: loading code may change its argument."""
    copy = OrderedDict(tensors)
    versions = getattr(tensors, "_metadata", None)
    if versions is not None:
        copy._metadata = OrderedDict(versions)  # type: ignore[attr-defined]  # noqa: SLF001
    return copy


def _load(module: nn.Module, tensors: Mapping[str, Any], *, strict: bool) -> tuple[str, bool]:
    """Call `load_state_dict`; return what it raises, "" if nothing, and whether it takes `assign`.

    Raises:
        _ValuesNeededError: it raised since tensors on meta have no values.
    """
    load: Callable[..., Any] = module.load_state_dict
    options = {"assign": True} if _accepts_assign(load) else {}
    try:
        with user_code():
            load(_copy_state(tensors), strict=strict, **options)
    except UserCodeError as error:
        text = str(error.error)
        if _LOAD_ERRORS not in text and any(part in text for part in _NEEDS_VALUES):
            raise _ValuesNeededError(str(error)) from error
        return _format_load_error(error), bool(options)
    return "", bool(options)


def _accepts_assign(load: Callable[..., Any]) -> bool:
    """Whether an override of `load_state_dict` passes `assign` on; older ones do not know it."""
    parameters = inspect.signature(load).parameters.values()
    return any(p.name == "assign" or p.kind is p.VAR_KEYWORD for p in parameters)


def _format_load_error(error: UserCodeError) -> str:
    """Return torch's lines on what does not fit, or the exception of the module's own code."""
    text = str(error.error)
    if _LOAD_ERRORS not in text:
        return str(error)
    _, _, lines = text.partition("\n")
    return summarize_message(lines or text)


def _get_storage_id(tensor: Tensor) -> int:
    """Return a number that tensors share if they share memory; lazy and sparse ones have none."""
    if is_lazy(tensor) or tensor.layout is not torch.strided:
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001


def _identify_storages(module: nn.Module) -> dict[str, int]:
    return {key: _get_storage_id(tensor) for key, tensor in _iter_state(module)}


def _iter_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of all sub-modules by key, tied ones under each name."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _find_sources(
    module: nn.Module, tensors: Mapping[str, Any], initial_storages: Mapping[str, int]
) -> Iterator[tuple[str, str | None]]:
    """Yield module key -> key of the file whose storage it has; "" if computed, None if unchanged.

    A key that has its own tensor of the file is its own source, also if that is tied to others.
    """
    owners: dict[int, list[str]] = {}
    for key, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            owners.setdefault(_get_storage_id(tensor), []).append(key)
    for key, tensor in _iter_state(module):
        storage = _get_storage_id(tensor)
        if storage in owners:
            yield key, key if key in owners[storage] else owners[storage][0]
        else:
            yield key, None if initial_storages.get(key) == storage else ""

"""nn.Module x StateDict -> LoadOutcome: what the module's own `load_state_dict` does with a state.

The loader copies tensors without data (on meta) into a copy of the module on meta, so that nothing
of the file's elements is read; which file tensor went where is recorded.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from ckptool.compare.left_out_ties import find_load_model_refusal
from ckptool.compare.load_outcome import LoadOutcome
from ckptool.compare.loader_diff import LoaderAnswer, build_loaded_diff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.errors import ReadError
from ckptool.loaders.describe import find_rewrite, load_with_framework
from ckptool.locations import RemotePath
from ckptool.model import Checkpoint, Container, ModuleInfo, Skipped, StateDict
from ckptool.modules.build import preserve_random_state
from ckptool.modules.move_probe import copy_to_meta
from ckptool.modules.tensors.tensor_parts import is_lazy
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import walk_module
from ckptool.phrases import summarize_message
from ckptool.verification.loading.copy_probe import find_copy_error
from ckptool.verification.loading.load_recorder import (
    ElementOrder,
    LoadRecorder,
    describe_element_order,
    identify_storage,
)
from ckptool.verification.loading.load_tensors import set_versions
from ckptool.verification.loading.probe_state import ValuesNeededError, build_probe_state

CHECK_NAME: Final = "the module's own loading code"
MAX_READ_NBYTES: Final = 256 << 20
"""Maximum size of a state whose values are read for loading code that looks at them."""
_NORM_MODULES: Final = ("torch.nn.modules.batchnorm", "torch.nn.modules.instancenorm")
_NEEDS_VALUES: Final = ("meta tensor", "Cannot copy out of", "on device meta", "'meta'", "no data")
"""Parts of torch's messages when code asks a tensor on meta for its values."""
_LOAD_ERRORS: Final = "Error(s) in loading state_dict"


def compare_with_loader(
    checkpoint: Checkpoint,
    module_info: ModuleInfo,
    module: nn.Module,
    at: str | None,
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
    return build_loaded_diff(checkpoint, module_info, at, partial(ask_loader, module))


def ask_loader(module: nn.Module, diff: ModuleDiff) -> LoaderAnswer:
    """Ask the loading code of `module`, which is copied and not changed, about the state of `diff`.

    The answer is empty where keys and shapes are all that a load looks at.
    """
    if diff.module.loader != "torch":
        answer = load_with_framework(diff.module.loader, module, diff.state)
        if isinstance(answer, Skipped):
            return LoaderAnswer(unchecked=answer)
        rewrite = find_rewrite(diff.module.loader, module, diff.state, answer)
        return LoaderAnswer(loading_info=replace(answer, rewrite=rewrite))
    refusal = _find_retie_refusal(module, diff) if diff.retied_keys else ""
    result = _probe_or_skip(module, replace(diff, retie_refusal=refusal))
    if isinstance(result, Skipped):
        return LoaderAnswer(unchecked=result, retie_refusal=refusal)
    return LoaderAnswer(outcome=result, retie_refusal=refusal)


def _find_retie_refusal(module: nn.Module, diff: ModuleDiff) -> str:
    """Return why `safetensors.torch.load_model` refuses the file; "" if it loads, or has shards."""
    if diff.checkpoint.container is not Container.SAFETENSORS:
        return ""
    missing, unexpected = diff.missing_keys, diff.unexpected_keys
    if find_loading_code(module):
        # What the loader is given: the names of the file alone.
        outcome = _probe_load(
            module, replace(diff, retie_refusal="asked", state=_drop_versions(diff))
        )
        if isinstance(outcome, Skipped):
            return f"{outcome.what} was not asked: {outcome.reason}"
        if outcome.missing_keys is None or outcome.unexpected_keys is None:
            return outcome.error
        missing, unexpected = outcome.missing_keys, outcome.unexpected_keys
    tensors = {key: saved.tensor for key, saved in diff.module.saved_tensors.items()}
    return find_load_model_refusal(tensors, diff.state.tensors, missing, unexpected)


def _drop_versions(diff: ModuleDiff) -> StateDict:
    """Return the state as `load_file` gives it: without the versions of the modules."""
    return replace(diff.state, versions=None)


def _probe_or_skip(module: nn.Module, diff: ModuleDiff) -> LoadOutcome | Skipped | None:
    """Return what the loader does; None if keys and shapes are all that it looks at."""
    prefixes = find_loading_code(module)
    is_asked = prefixes and not (
        diff.is_strict and all(_only_fills_keys(module.get_submodule(p)) for p in prefixes)
    )
    outcome = _probe_load(module, diff) if is_asked else None
    if isinstance(outcome, Skipped) or (outcome is not None and not outcome.is_strict):
        return outcome
    # The probe assigns tensors, and a load copies them.
    copy_error = find_copy_error(diff, module)
    if isinstance(copy_error, Skipped):
        # With values, the probe has made the copies already.
        return outcome if outcome is not None and outcome.has_read_values else copy_error
    if copy_error and any(_is_user_class(module.get_submodule(prefix)) for prefix in prefixes):
        return Skipped(CHECK_NAME, f"it may convert what torch cannot copy: {copy_error}")
    return LoadOutcome(copy_error, None, None) if copy_error else outcome


def _is_user_class(module: nn.Module) -> bool:
    return not type(module).__module__.startswith("torch.")


def loads_by_own_code(module: nn.Module) -> bool:
    """Whether code other than torch's copying takes part in a load whose keys and shapes match."""
    return not all(
        _only_fills_keys(module.get_submodule(prefix)) for prefix in find_loading_code(module)
    )


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
            state = _copy_module(module, on_meta=False).state_dict()
        error = _load(
            _copy_module(module, on_meta=False),
            state,
            LoadRecorder(),
            strict=True,
            has_values=False,
        )
    except (UserCodeError, ValuesNeededError) as caught:
        skipped = Skipped("loading the module's own state_dict()", str(caught))
        return replace(module_info, skipped=(*module_info.skipped, skipped))
    return replace(module_info, own_load_error=error)


def try_strict_load(module: nn.Module, state_dict: Mapping[str, Any]) -> str:
    """Load real tensors strictly into a copy of `module`; return what it raises, "" if it loads.

    The copy has its parameters on meta: shapes are compared, and only tensors that torch may refuse
    to copy, or that the module's own code reads, need memory.

    Raises:
        UserCodeError: the module cannot be copied.
    """
    recorder = LoadRecorder(has_values=True)
    copy = _copy_module(module, on_meta=False)
    try:
        return _load(copy, state_dict, recorder, strict=True, has_values=True)
    except ValuesNeededError as error:
        raise UserCodeError(error) from error


def needs_values(error: str) -> bool:
    """Whether a load raised because the module's own code used a tensor without memory."""
    return any(part in error for part in _NEEDS_VALUES)


def find_loading_code(module: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of sub-modules that load or save by more than nn.Module's own code.

    Without any, a state_dict is what is registered, and torch's comparison of keys and shapes is
    all that a load is.
    """
    members = list(module.named_modules())
    own_classes = {cls for cls in {type(part) for _, part in members} if _overrides_loading(cls)}
    return tuple(
        prefix for prefix, part in members if type(part) in own_classes or _has_hooks(part)
    )


def _overrides_loading(cls: type[nn.Module]) -> bool:
    return bool(
        cls._load_from_state_dict is not nn.Module._load_from_state_dict  # noqa: SLF001
        or cls.load_state_dict is not nn.Module.load_state_dict
        or cls.set_extra_state is not nn.Module.set_extra_state
        or cls._save_to_state_dict is not nn.Module._save_to_state_dict  # noqa: SLF001
        or cls.state_dict is not nn.Module.state_dict
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._state_dict_hooks  # noqa: SLF001
        or module._load_state_dict_pre_hooks  # noqa: SLF001
        or module._load_state_dict_post_hooks  # noqa: SLF001
    )


def _probe_load(module: nn.Module, diff: ModuleDiff) -> LoadOutcome | Skipped:
    """Ask copies of `module` to load the state of `diff`; Skipped if they cannot be asked.

    Values are read only where the loading code needs them, first of what is no parameter, and of at
    most MAX_READ_NBYTES.

    Args:
        module: an instance of the module; it is copied, not changed.
        diff: what keys and shapes say. Keys that safetensors leaves out since they are tied are
            given under both names.
    """
    reason = ""
    with preserve_random_state():
        for keys in _choose_read_keys(module, diff):
            nbytes = sum(diff.state.tensors[key].nbytes for key in keys)
            is_remote = isinstance(diff.checkpoint.path, RemotePath)
            if keys and (diff.is_planned or is_remote or nbytes > MAX_READ_NBYTES):
                break
            try:
                tensors = _with_retied(build_probe_state(diff, keys), diff.retied_keys)
                has_values = len(keys) == len(diff.state.tensors)
                return _run_loads(module, tensors, keys, has_values=has_values)
            except ValuesNeededError as error:
                reason = str(error)
            except (ReadError, UserCodeError) as error:
                return Skipped(CHECK_NAME, str(error))
    return Skipped(CHECK_NAME, f"it needs the file's values: {reason}")


def _choose_read_keys(module: nn.Module, diff: ModuleDiff) -> Iterator[frozenset[str]]:
    """Yield the keys whose values are read: none, then all but the parameters', then all."""
    keys = frozenset(diff.state.tensors)
    parameter_names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    yield from dict.fromkeys((frozenset(), keys - parameter_names, keys))


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


def _with_retied(tensors: Mapping[str, Any], retied_keys: Mapping[str, str]) -> Mapping[str, Any]:
    result = _copy_state(tensors)
    result.update({name: result[kept_key] for name, kept_key in retied_keys.items()})
    return result


def _run_loads(
    module: nn.Module,
    tensors: Mapping[str, Any],
    read_keys: frozenset[str],
    *,
    has_values: bool,
) -> LoadOutcome:
    """Load strictly into one copy; where that raises, load with strict=False into another.

    Raises:
        ValuesNeededError: the loading code needs values, and `tensors` have none.
        UserCodeError: the module cannot be copied.
    """
    loaded = _copy_module(module, on_meta=not read_keys)
    with user_code():
        initial_storages = {key: identify_storage(tensor) for key, tensor in _iter_state(loaded)}
    key_recorder, load_recorder = _record_keys(loaded), LoadRecorder(has_values=has_values)
    error = _load(loaded, tensors, load_recorder, strict=True, has_values=has_values)
    if error:
        lenient = _copy_module(module, on_meta=not read_keys)
        key_recorder = _record_keys(lenient)
        load_recorder = LoadRecorder(has_values=has_values)
        lenient_error = _load(lenient, tensors, load_recorder, strict=False, has_values=has_values)
        return LoadOutcome(
            error=error,
            missing_keys=tuple(key_recorder.missing) if not lenient_error else None,
            unexpected_keys=tuple(key_recorder.unexpected) if not lenient_error else None,
            has_read_values=bool(read_keys),
        )
    sources = dict(_find_sources(loaded, tensors, initial_storages, load_recorder))
    return LoadOutcome(
        missing_keys=tuple(key_recorder.missing),
        unexpected_keys=tuple(key_recorder.unexpected),
        sources={key: source for key, (source, _) in sources.items()},
        rearranged_keys=frozenset(key for key, (_, is_whole) in sources.items() if not is_whole),
        has_read_values=bool(read_keys),
    )


def _copy_module(module: nn.Module, *, on_meta: bool) -> nn.Module:
    """Return a copy with parameters on meta, and with `on_meta` saved buffers too.

    Raises:
        UserCodeError: the module cannot be copied.
    """
    with user_code():
        copy = copy_to_meta(module, walk_module(module))
        if on_meta:
            _move_to_meta(copy)
        return copy


def _move_to_meta(module: nn.Module) -> None:
    """Replace lazy parameters and saved dense buffers; what is tied stays tied."""
    replacements: dict[int, Tensor] = {}
    for part in module.modules():
        saved_buffers = part._buffers.keys() - part._non_persistent_buffers_set  # noqa: SLF001
        for tensors, names in ((part._parameters, part._parameters.keys()),  # noqa: SLF001
                               (part._buffers, saved_buffers)):  # fmt: skip  # noqa: SLF001
            for name in list(names):
                tensor = tensors[name]
                if tensor is not None and not tensor.is_meta and _can_be_on_meta(tensor):
                    new = replacements.setdefault(id(tensor), _make_meta_tensor(tensor))
                    tensors[name] = new  # type: ignore[assignment]


def _can_be_on_meta(tensor: Tensor) -> bool:
    if is_lazy(tensor):
        return True
    is_dense = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
    return type(tensor) is Tensor and is_dense


def _make_meta_tensor(tensor: Tensor) -> Tensor:
    if is_lazy(tensor):
        make: Callable[..., Tensor] = type(tensor)
        return make(tensor.requires_grad, device="meta", dtype=tensor.dtype)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _copy_state(tensors: Mapping[str, Any]) -> "OrderedDict[str, Any]":
    """Return a shallow copy with `_metadata`: loading code may change its argument."""
    copy = OrderedDict(tensors)
    versions = getattr(tensors, "_metadata", None)
    if versions is not None:
        set_versions(copy, versions)
    return copy


def _load(
    module: nn.Module,
    tensors: Mapping[str, Any],
    recorder: LoadRecorder,
    *,
    strict: bool,
    has_values: bool,
) -> str:
    """Call `load_state_dict`; return what it raises, "" if nothing.

    With `has_values`, a tensor is on meta only where it is so in the file.

    Raises:
        ValuesNeededError: it raised since tensors on meta have no values.
    """
    try:
        with warnings.catch_warnings(), user_code(), recorder:
            # The load is part of the probe: torch's warnings about it do not concern the user.
            warnings.simplefilter("ignore")
            module.load_state_dict(_copy_state(tensors), strict=strict)
    except UserCodeError as error:
        text = error.text
        is_torchs = has_values and _LOAD_ERRORS in text
        if not is_torchs and any(part in text for part in _NEEDS_VALUES):
            raise ValuesNeededError(str(error)) from error
        return _format_load_error(error)
    return ""


def _format_load_error(error: UserCodeError) -> str:
    """Return torch's lines on what does not fit, or the exception of the module's own code."""
    text = error.text
    if _LOAD_ERRORS not in text:
        return str(error)
    _, _, lines = text.partition("\n")
    return summarize_message(lines or text)


def _iter_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of all sub-modules by key, tied ones under each name."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _find_sources(
    module: nn.Module,
    tensors: Mapping[str, Any],
    initial_storages: Mapping[str, int],
    recorder: LoadRecorder,
) -> Iterator[tuple[str, tuple[str | None, bool]]]:
    """Yield module key -> key of the file whose elements it has, and whether all, in their order.

    Instead of the key of the file, "" stands for a value that was computed, None for one that did
    not change. A key that has its own tensor of the file is its own source, also if that is tied
    to others.
    """
    file_tensors: dict[int, dict[str, ElementOrder]] = {}
    for key, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            orders = file_tensors.setdefault(identify_storage(tensor), {})
            orders[key] = describe_element_order(tensor)
    for key, tensor in _iter_state(module):
        source = recorder.find_source(tensor)
        if source is None or source.storage not in file_tensors:
            is_initial = source is not None and initial_storages.get(key) == source.storage
            yield key, (None if is_initial else "", True)
            continue
        orders = file_tensors[source.storage]
        equal_keys = [name for name, order in orders.items() if order == source.order]
        candidates = equal_keys or list(orders)
        yield key, (key if key in candidates else candidates[0], bool(equal_keys))

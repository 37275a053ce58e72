"""Instance of a module x tensors -> what one call of load_state_dict does, recorded."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor, nn

from ckptool.compare.load_outcome import LoadOutcome
from ckptool.modules.build import preserve_random_state
from ckptool.modules.live.load_call import call_load_state_dict
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.phrases import summarize_message
from ckptool.verification.loading.load_recorder import (
    ElementOrder,
    LoadRecorder,
    describe_element_order,
    identify_storage,
)
from ckptool.verification.loading.load_tensors import copy_state
from ckptool.verification.loading.loading_code import find_user_loading_code
from ckptool.verification.loading.probe_state import ValuesNeededError
from ckptool.verification.loading.trial_module import TrialModule

_NEEDS_VALUES: Final = ("meta tensor", "Cannot copy out of", "on device meta", "'meta'", "no data")
"""Parts of torch's messages when code asks a tensor on meta for its values."""
_LOAD_ERRORS: Final = "Error(s) in loading state_dict"


def try_strict_load(trial: TrialModule, state_dict: Mapping[str, Any]) -> str:
    """Load real tensors strictly into another instance; return what it raises, "" if it loads.

    Without loading code of the user's, or if it is large, its parameters are on meta: shapes are
    compared, and only tensors that torch may refuse to copy, or that the module's own code reads,
    need memory.

    Raises:
        UserCodeError: no instance can be made.
        ValuesNeededError: the module's code asks for values or memory of its own parameters.
    """
    is_real = bool(find_user_loading_code(trial.module)) and trial.is_small
    instance = trial.create_real() if is_real else trial.create_on_meta(with_buffers=False)
    recorder = LoadRecorder(has_values=True)
    with preserve_random_state():
        error = record_load(instance, state_dict, recorder, strict=True, has_values=True)
    if recorder.value_use.first:
        raise ValuesNeededError(f"its code asks for {recorder.value_use.first}")
    return error


def needs_values(error: str) -> bool:
    """Whether a load raised because the module's own code used a tensor without memory."""
    return any(part in error for part in _NEEDS_VALUES)


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


def with_retied(tensors: Mapping[str, Any], retied_keys: Mapping[str, str]) -> Mapping[str, Any]:
    result = copy_state(tensors)
    result.update({name: result[kept_key] for name, kept_key in retied_keys.items()})
    return result


def run_loads(
    create: Callable[[], nn.Module],
    tensors: Mapping[str, Any],
    *,
    has_values: bool,
    has_read_values: bool,
) -> LoadOutcome:
    """Load strictly into one instance; where that raises, load with strict=False into another.

    Raises:
        ValuesNeededError: the loading code needs values, and `tensors` have none.
        UserCodeError: no instance can be made.
    """
    loaded = create()
    with user_code():
        initial_storages = {key: identify_storage(tensor) for key, tensor in _iter_state(loaded)}
    key_recorder, load_recorder = _record_keys(loaded), LoadRecorder(has_values=has_values)
    error = record_load(loaded, tensors, load_recorder, strict=True, has_values=has_values)
    if error:
        lenient = create()
        key_recorder = _record_keys(lenient)
        value_use = load_recorder.value_use
        load_recorder = LoadRecorder(has_values=has_values)
        lenient_error = record_load(
            lenient, tensors, load_recorder, strict=False, has_values=has_values
        )
        return LoadOutcome(
            error=error,
            missing_keys=tuple(key_recorder.missing) if not lenient_error else None,
            unexpected_keys=tuple(key_recorder.unexpected) if not lenient_error else None,
            has_read_values=has_read_values,
            value_use=value_use.first or load_recorder.value_use.first,
        )
    sources = dict(_find_sources(loaded, tensors, initial_storages, load_recorder))
    return LoadOutcome(
        missing_keys=tuple(key_recorder.missing),
        unexpected_keys=tuple(key_recorder.unexpected),
        sources={key: source for key, (source, _) in sources.items()},
        rearranged_keys=frozenset(key for key, (_, is_whole) in sources.items() if not is_whole),
        has_read_values=has_read_values,
        value_use=load_recorder.value_use.first,
    )


def record_load(
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
        with warnings.catch_warnings(), user_code(), recorder, recorder.value_use:
            # The load is part of the probe: torch's warnings about it do not concern the user.
            warnings.simplefilter("ignore")
            call_load_state_dict(module, copy_state(tensors), strict=strict)
    except UserCodeError as error:
        text = error.text
        is_torchs = has_values and _LOAD_ERRORS in text
        is_asked = not has_values and recorder.value_use.first
        if is_asked or (not is_torchs and any(part in text for part in _NEEDS_VALUES)):
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

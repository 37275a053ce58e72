"""nn.Module x StateDict -> LoadOutcome: what the module's own `load_state_dict` does with a state.

The loader copies tensors without data (on meta) into a copy of the module on meta, so that nothing
of the file's elements is read; which file tensor went where is recorded.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

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
from ckptool.modules.live.load_call import call_load_state_dict
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.phrases import summarize_message
from ckptool.verification.copy_probe import find_copy_error
from ckptool.verification.load_recorder import (
    ElementOrder,
    LoadRecorder,
    describe_element_order,
    identify_storage,
)
from ckptool.verification.load_tensors import can_be_read_without_torch, copy_state
from ckptool.verification.probe_state import ValuesNeededError, build_probe_state
from ckptool.verification.trial.kept_values import find_kept_elements
from ckptool.verification.trial.trial_module import (
    MAX_READ_NBYTES,
    TrialModule,
    find_loading_code,
    find_user_loading_code,
    get_part,
    has_hooks,
    is_user_class,
)

CHECK_NAME: Final = "the module's own loading code"
_NORM_MODULES: Final = ("torch.nn.modules.batchnorm", "torch.nn.modules.instancenorm")
_NEEDS_VALUES: Final = ("meta tensor", "Cannot copy out of", "on device meta", "'meta'", "no data")
"""Parts of torch's messages when code asks a tensor on meta for its values."""
_LOAD_ERRORS: Final = "Error(s) in loading state_dict"


def compare_with_loader(
    checkpoint: Checkpoint,
    module_info: ModuleInfo,
    trial: TrialModule,
    at: str | None,
) -> ModuleDiff:
    """Compare the state at `at` with the module, as its own `load_state_dict` would load it.

    Keys and shapes decide for a module that has no loading code of its own: that is torch's whole
    algorithm. Otherwise the code is asked; where it cannot be, the keys decide, and the check is
    among the module's `skipped`.

    Args:
        checkpoint: the file.
        module_info: description of `module`.
        trial: the module.
        at: place of the state; None takes the one that matches best.
    """
    return build_loaded_diff(checkpoint, module_info, at, partial(ask_loader, trial))


def ask_loader(trial: TrialModule, diff: ModuleDiff) -> LoaderAnswer:
    """Ask the loading code of a module, on other instances of it, about the state of `diff`.

    The answer is empty where keys and shapes are all that a load looks at.
    """
    module = trial.module
    if diff.module.loader != "torch":
        answer = load_with_framework(diff.module.loader, module, diff.state)
        if isinstance(answer, Skipped):
            return LoaderAnswer(unchecked=answer)
        rewrite = find_rewrite(diff.module.loader, module, diff.state, answer)
        return LoaderAnswer(loading_info=replace(answer, rewrite=rewrite))
    refusal = _find_retie_refusal(trial, diff) if diff.retied_keys else ""
    result = _probe_or_skip(trial, replace(diff, retie_refusal=refusal))
    if isinstance(result, Skipped):
        return LoaderAnswer(unchecked=result, retie_refusal=refusal)
    return LoaderAnswer(outcome=result, retie_refusal=refusal)


def _find_retie_refusal(trial: TrialModule, diff: ModuleDiff) -> str:
    """Return why `safetensors.torch.load_model` refuses the file; "" if it loads, or has shards."""
    if diff.checkpoint.container is not Container.SAFETENSORS:
        return ""
    missing, unexpected = diff.missing_keys, diff.unexpected_keys
    if find_loading_code(trial.module):
        # What the loader is given: the names of the file alone.
        outcome = _probe_load(
            trial, replace(diff, retie_refusal="asked", state=_drop_versions(diff))
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


def _probe_or_skip(trial: TrialModule, diff: ModuleDiff) -> LoadOutcome | Skipped | None:
    """Return what the loader does; None if keys and shapes are all that it looks at."""
    module = trial.module
    prefixes = find_loading_code(module)
    is_asked = prefixes and not (
        diff.is_strict and all(_only_fills_keys(get_part(module, p)) for p in prefixes)
    )
    outcome = _probe_load(trial, diff) if is_asked else None
    if isinstance(outcome, Skipped) or (outcome is not None and not outcome.is_strict):
        return outcome
    # The probe assigns tensors, and a load copies them.
    copy_error = find_copy_error(diff, module)
    if isinstance(copy_error, Skipped):
        # With values, the probe has made the copies already.
        return outcome if outcome is not None and outcome.has_read_values else copy_error
    if copy_error and any(is_user_class(get_part(module, prefix)) for prefix in prefixes):
        return Skipped(CHECK_NAME, f"it may convert what torch cannot copy: {copy_error}")
    return LoadOutcome(copy_error, None, None) if copy_error else outcome


def loads_by_own_code(module: nn.Module) -> bool:
    """Whether code other than torch's copying takes part in a load whose keys and shapes match."""
    return not all(
        _only_fills_keys(get_part(module, prefix)) for prefix in find_loading_code(module)
    )


def _only_fills_keys(module: nn.Module) -> bool:
    """Whether it is one of torch's norm layers: their code acts only on keys that do not match."""
    return type(module).__module__ in _NORM_MODULES and not has_hooks(module)


def check_own_load(module_info: ModuleInfo, trial: TrialModule) -> ModuleInfo:
    """Return the description with what loading the module's own state_dict() into a copy raises.

    A module can write a key that it does not read, or ask for one that it leaves out. Torch's own
    classes read what they write.
    """
    if not find_user_loading_code(trial.module):
        return module_info
    on_meta = partial(trial.create_on_meta, with_buffers=False)
    create = trial.create_real if trial.can_be_real else on_meta
    try:
        with preserve_random_state():
            with user_code():
                state = create().state_dict()
            has_values = trial.can_be_real
            error = _load(create(), state, LoadRecorder(), strict=True, has_values=has_values)
    except (UserCodeError, ValuesNeededError) as caught:
        skipped = Skipped("loading the module's own state_dict()", str(caught))
        return replace(module_info, skipped=(*module_info.skipped, skipped))
    return replace(module_info, own_load_error=error)


def try_strict_load(trial: TrialModule, state_dict: Mapping[str, Any]) -> str:
    """Load real tensors strictly into another instance; return what it raises, "" if it loads.

    Without loading code of the user's, or if it is large, its parameters are on meta: shapes are
    compared, and only tensors that torch may refuse to copy, or that the module's own code reads,
    need memory.

    Raises:
        UserCodeError: no instance can be made.
    """
    is_real = bool(find_user_loading_code(trial.module)) and trial.can_be_real
    instance = trial.create_real() if is_real else trial.create_on_meta(with_buffers=False)
    recorder = LoadRecorder(has_values=True)
    try:
        with preserve_random_state():
            return _load(instance, state_dict, recorder, strict=True, has_values=True)
    except ValuesNeededError as error:
        raise UserCodeError(error) from error


def needs_values(error: str) -> bool:
    """Whether a load raised because the module's own code used a tensor without memory."""
    return any(part in error for part in _NEEDS_VALUES)


class _Attempt(NamedTuple):
    """A way to ask the loading code."""

    read_keys: frozenset[str]
    """Keys whose values are read."""
    create: Callable[[], nn.Module]
    """Makes the instance that loads."""
    is_real: bool
    """Whether all tensors of the instance have memory."""


def _probe_load(trial: TrialModule, diff: ModuleDiff) -> LoadOutcome | Skipped:
    """Ask other instances of the module to load the state of `diff`; Skipped if that cannot be.

    Code of the user's is run as a script runs it, with all values, if file and module are small: it
    may look at devices and values. Otherwise values are read only where the loading code needs
    them, first of what is no parameter, and of at most MAX_READ_NBYTES.

    Args:
        trial: the module.
        diff: what keys and shapes say. Keys that safetensors leaves out since they are tied are
            given under both names.
    """
    reason = ""
    with preserve_random_state():
        for attempt in _list_attempts(trial, diff):
            try:
                tensors = build_probe_state(diff, attempt.read_keys)
                has_values = attempt.is_real or len(attempt.read_keys) == len(diff.state.tensors)
                tensors = _with_retied(tensors, diff.retied_keys)
                outcome = _run_loads(
                    attempt.create, tensors,
                    has_values=has_values, has_read_values=bool(attempt.read_keys),
                )  # fmt: skip
                return _add_kept(outcome, attempt, tensors)
            except ValuesNeededError as error:
                reason = str(error)
            except (ReadError, UserCodeError) as error:
                if not attempt.is_real:
                    return Skipped(CHECK_NAME, str(error))
    return Skipped(CHECK_NAME, f"it needs the file's values: {reason}")


def _add_kept(outcome: LoadOutcome, attempt: _Attempt, tensors: Mapping[str, Any]) -> LoadOutcome:
    """Return the outcome with the elements of computed tensors that are not of the file."""
    computed = [key for key, source in outcome.sources.items() if source == ""]
    if not (computed and attempt.is_real and outcome.is_strict):
        return outcome
    return replace(outcome, kept=find_kept_elements(attempt.create, tensors, computed))


def _list_attempts(trial: TrialModule, diff: ModuleDiff) -> Iterator[_Attempt]:
    is_remote = isinstance(diff.checkpoint.path, RemotePath)

    def is_small(keys: frozenset[str]) -> bool:
        nbytes = sum(diff.state.tensors[key].nbytes for key in keys)
        return not is_remote and nbytes <= MAX_READ_NBYTES

    all_keys = frozenset(diff.state.tensors)
    has_values = not diff.is_planned or can_be_read_without_torch(diff.state)
    if (
        has_values
        and is_small(all_keys)
        and trial.can_be_real
        and find_user_loading_code(trial.module)
    ):
        yield _Attempt(all_keys, trial.create_real, is_real=True)
    for keys in _choose_read_keys(trial.module, diff):
        if keys and (diff.is_planned or not is_small(keys)):
            return
        yield _Attempt(keys, partial(trial.create_on_meta, with_buffers=not keys), is_real=False)


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
    result = copy_state(tensors)
    result.update({name: result[kept_key] for name, kept_key in retied_keys.items()})
    return result


def _run_loads(
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
    error = _load(loaded, tensors, load_recorder, strict=True, has_values=has_values)
    if error:
        lenient = create()
        key_recorder = _record_keys(lenient)
        load_recorder = LoadRecorder(has_values=has_values)
        lenient_error = _load(lenient, tensors, load_recorder, strict=False, has_values=has_values)
        return LoadOutcome(
            error=error,
            missing_keys=tuple(key_recorder.missing) if not lenient_error else None,
            unexpected_keys=tuple(key_recorder.unexpected) if not lenient_error else None,
            has_read_values=has_read_values,
        )
    sources = dict(_find_sources(loaded, tensors, initial_storages, load_recorder))
    return LoadOutcome(
        missing_keys=tuple(key_recorder.missing),
        unexpected_keys=tuple(key_recorder.unexpected),
        sources={key: source for key, (source, _) in sources.items()},
        rearranged_keys=frozenset(key for key, (_, is_whole) in sources.items() if not is_whole),
        has_read_values=has_read_values,
    )


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
            call_load_state_dict(module, copy_state(tensors), strict=strict)
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

"""nn.Module x StateDict -> LoadOutcome: what the module's own `load_state_dict` does with a state.

The loader copies tensors without data (on meta) into a copy of the module on meta, so that nothing
of the file's elements is read; which file tensor went where is recorded.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from msgspec.structs import replace
from torch import nn

from ckptool.compare.left_out_ties import find_load_model_refusal
from ckptool.compare.load_outcome import LoadOutcome
from ckptool.compare.loader_diff import LoaderAnswer, build_loaded_diff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.errors import ReadError
from ckptool.loaders.describe import find_rewrite, load_with_framework
from ckptool.locations import RemotePath
from ckptool.model import Checkpoint, Container, ModuleInfo, Skipped, StateDict
from ckptool.modules.build import preserve_random_state
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.verification.loading.copy_probe import find_copy_error
from ckptool.verification.loading.free_memory import count_loadable_bytes
from ckptool.verification.loading.kept_values import find_kept_elements
from ckptool.verification.loading.load_recorder import (
    LoadRecorder,
)
from ckptool.verification.loading.load_tensors import can_be_read_without_torch
from ckptool.verification.loading.loading_code import (
    find_loading_code,
    find_user_loading_code,
    get_part,
    is_user_class,
    only_fills_keys,
)
from ckptool.verification.loading.probe_state import ValuesNeededError, build_probe_state
from ckptool.verification.loading.recorded_load import record_load, run_loads, with_retied
from ckptool.verification.loading.trial_module import MAX_SMALL_NBYTES, TrialModule

CHECK_NAME: Final = "the module's own loading code"


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
    value_use = result.value_use if result is not None else ""
    unchecked = Skipped(CHECK_NAME, _describe_use(value_use)) if value_use else None
    return LoaderAnswer(outcome=result, unchecked=unchecked, retie_refusal=refusal)


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
        if outcome.value_use:
            return f"{CHECK_NAME} was not asked: {_describe_use(outcome.value_use)}"
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
        diff.is_strict and all(only_fills_keys(get_part(module, p)) for p in prefixes)
    )
    outcome = _probe_load(trial, diff) if is_asked else None
    if isinstance(outcome, Skipped) or (outcome is not None and not outcome.is_strict):
        return outcome
    # The probe assigns tensors, and a load copies them.
    copy_error = find_copy_error(diff, module, is_asked=outcome is not None)
    if isinstance(copy_error, Skipped):
        # With values, the probe has made the copies already.
        return outcome if outcome is not None and outcome.has_read_values else copy_error
    if copy_error and any(is_user_class(get_part(module, prefix)) for prefix in prefixes):
        return Skipped(CHECK_NAME, f"it may convert what torch cannot copy: {copy_error}")
    return LoadOutcome(copy_error, None, None) if copy_error else outcome


def check_own_load(module_info: ModuleInfo, trial: TrialModule) -> ModuleInfo:
    """Return the description with what loading the module's own state_dict() into a copy raises.

    A module can write a key that it does not read, or ask for one that it leaves out. Torch's own
    classes read what they write.
    """
    if not find_user_loading_code(trial.module):
        return module_info
    on_meta = partial(trial.create_on_meta, with_buffers=False)
    create = trial.create_real if trial.is_small else on_meta
    recorder = LoadRecorder()
    try:
        with preserve_random_state():
            with user_code():
                state = create().state_dict()
            error = record_load(create(), state, recorder, strict=True, has_values=trial.is_small)
        reason = "" if trial.is_small else recorder.value_use.first
        reason = reason and _describe_use(reason)
    except (UserCodeError, ValuesNeededError) as caught:
        error, reason = "", str(caught)
    if reason:
        skipped = Skipped("loading the module's own state_dict()", reason)
        return replace(module_info, skipped=(*module_info.skipped, skipped))
    return replace(module_info, own_load_error=error)


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
    may look at devices and values. Otherwise it is run on meta, and what it asks of such tensors is
    recorded: only where it asks, values are read, first of what is no parameter, and last an
    instance with memory is made, if the machine has it. Without it the last answer is given with
    what was asked (`LoadOutcome.value_use`) if it is a load, as it may be another with values.

    Args:
        trial: the module.
        diff: what keys and shapes say. Keys that safetensors leaves out since they are tied are
            given under both names.
    """
    reason = ""
    unsure: LoadOutcome | None = None
    with preserve_random_state():
        for attempt in _list_attempts(trial, diff):
            try:
                tensors = build_probe_state(diff, attempt.read_keys)
                has_values = attempt.is_real or len(attempt.read_keys) == len(diff.state.tensors)
                tensors = with_retied(tensors, diff.retied_keys)
                outcome = run_loads(
                    attempt.create, tensors,
                    has_values=has_values, has_read_values=bool(attempt.read_keys),
                )  # fmt: skip
            except ValuesNeededError as error:
                reason = str(error)
            except (ReadError, UserCodeError) as error:
                if not attempt.is_real:
                    return unsure or Skipped(CHECK_NAME, str(error))
                reason = str(error)
            else:
                if attempt.is_real or not outcome.value_use:
                    return _add_kept(replace(outcome, value_use=""), attempt, tensors)
                reason = _describe_use(outcome.value_use)
                unsure = outcome if outcome.is_strict else None
    return unsure or Skipped(CHECK_NAME, f"it needs the file's values: {reason}")


def _describe_use(value_use: str) -> str:
    return f"it asks for {value_use}, and was run without memory for all tensors"


def _add_kept(outcome: LoadOutcome, attempt: _Attempt, tensors: Mapping[str, Any]) -> LoadOutcome:
    """Return the outcome with the elements of computed tensors that are not of the file."""
    computed = [key for key, source in outcome.sources.items() if source == ""]
    if not (computed and attempt.is_real and outcome.is_strict):
        return outcome
    return replace(outcome, kept=find_kept_elements(attempt.create, tensors, computed))


def _list_attempts(trial: TrialModule, diff: ModuleDiff) -> Iterator[_Attempt]:
    all_keys = frozenset(diff.state.tensors)
    is_remote = isinstance(diff.checkpoint.path, RemotePath)
    has_values = not is_remote and (not diff.is_planned or can_be_read_without_torch(diff.state))
    max_nbytes = count_loadable_bytes()
    real = _Attempt(all_keys, trial.create_real, is_real=True)
    real_limit = max_nbytes if has_values and find_user_loading_code(trial.module) else -1

    def can_run_real(limit: int) -> bool:
        return _count_bytes(diff, all_keys) <= limit and trial.can_be_real(limit)

    if can_run_real(min(MAX_SMALL_NBYTES, real_limit)):
        yield real
    for keys in _choose_read_keys(trial.module, diff):
        is_readable = has_values and not diff.is_planned and _count_bytes(diff, keys) <= max_nbytes
        if is_readable or not keys:
            yield _Attempt(
                keys, partial(trial.create_on_meta, with_buffers=not keys), is_real=False
            )
    if can_run_real(real_limit):
        yield real


def _count_bytes(diff: ModuleDiff, keys: frozenset[str]) -> int:
    return sum(diff.state.tensors[key].nbytes for key in keys)


def _choose_read_keys(module: nn.Module, diff: ModuleDiff) -> Iterator[frozenset[str]]:
    """Yield the keys whose values are read: none, then all but the parameters', then all."""
    keys = frozenset(diff.state.tensors)
    parameter_names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    yield from dict.fromkeys((frozenset(), keys - parameter_names, keys))

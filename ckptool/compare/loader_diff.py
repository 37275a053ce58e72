"""Checkpoint x ModuleInfo x the answer of the module's loading code -> ModuleDiff."""

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.framework.framework_load import apply_loading_info
from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.compare.load_outcome import LoadOutcome
from ckptool.compare.module_comparison import add_nested_keys, apply_load_outcome, build_module_diff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import Checkpoint, ModuleInfo, Skipped


class LoaderAnswer(Struct, frozen=True):
    """What the module's own loading code says of a state; None twice if it was not asked."""

    outcome: LoadOutcome | None = None
    unchecked: Skipped | None = None
    """Why it could not be asked, or why the outcome may be another one."""
    retie_refusal: str = ""
    """`ModuleDiff.retie_refusal`."""
    loading_info: LoadingInfo | None = None
    """What a framework's loader does, where that loads the module."""


AskLoader = Callable[[ModuleDiff], LoaderAnswer]
"""Asks the module's own `load_state_dict`, given what keys and shapes say."""


def build_loaded_diff(
    checkpoint: Checkpoint,
    module_info: ModuleInfo,
    at: str | None,
    ask_loader: AskLoader,
    *,
    is_planned: bool = False,
) -> ModuleDiff:
    """Compare the state at `at` with the module, as its own `load_state_dict` would load it.

    Args:
        checkpoint: the file.
        module_info: description of the module.
        at: place of the state; None takes the one that matches best.
        ask_loader: asks the module; it is called only where the answer counts.
        is_planned: whether no file holds the state yet, so that its values cannot be read.
    """
    diff = replace(build_module_diff(checkpoint, module_info, at), is_planned=is_planned)
    diff = add_nested_keys(diff)
    if not (diff.state.tensors or module_info.loader != "torch"):
        return diff
    if checkpoint.load_refusal:
        refusal = f"torch.load refuses the file: {checkpoint.load_refusal}"
        return apply_load_outcome(diff, LoadOutcome(refusal, None, None))
    answer = ask_loader(diff)
    diff = replace(diff, retie_refusal=answer.retie_refusal)
    if answer.unchecked is not None:
        unchecked = replace(module_info, skipped=(*module_info.skipped, answer.unchecked))
        diff = replace(diff, module=unchecked, unchecked_load=answer.unchecked)
    if answer.loading_info is not None:
        return apply_loading_info(diff, answer.loading_info)
    return diff if answer.outcome is None else apply_load_outcome(diff, answer.outcome)

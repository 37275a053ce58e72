"""ModuleFactory x Inputs -> ForwardEffects: state that forward changes, uses, and does not save."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from ckptool.model import Skipped
from ckptool.modules.live.snapshot import find_mutated, take_snapshot
from ckptool.modules.user_code import UserCodeError
from ckptool.verification import inputs as input_sources
from ckptool.verification.backends import simulated
from ckptool.verification.forward_pass import Inputs, prepare_forward
from ckptool.verification.levels.round_trip import check_round_trip
from ckptool.verification.module_factory import ModuleFactory
from ckptool.verification.result import ForwardEffects
from ckptool.verification.usage_changes import find_python_changes

_DEVICE: Final = torch.device("cuda", 0)


@dataclass(frozen=True, slots=True, eq=False)
class _FreshInstances:
    """InstanceFactory of freshly built modules, without loading weights."""

    factory: ModuleFactory
    separates_ties: bool = False

    def create_module(self) -> nn.Module:
        return self.factory.create_module()


def measure_forward_effects(factory: ModuleFactory, inputs: Inputs | None) -> ForwardEffects:
    """Run forward in eval and in train mode, and compare snapshots taken before and after.

    Without inputs the result has only the module's name.

    Raises:
        ModuleError: it cannot be built.
        UsageError: forward does not accept the inputs.
    """
    module = factory.create_module()
    if inputs is None:
        return ForwardEffects(factory.target)
    input_sources.require_matching_inputs(module, inputs)
    old_snapshot = take_snapshot(module)
    try:
        for training in (False, True):
            _run_forward(module, inputs, training=training)
    except UserCodeError as error:
        return ForwardEffects(
            factory.target, skipped=(Skipped("a forward pass", f"it raised {error}"),)
        )
    new_snapshot = take_snapshot(module)
    simulated_pass = simulated.run_simulated(factory.create_module(), inputs, _DEVICE)
    round_trip_result, round_trip_difference = check_round_trip(
        _FreshInstances(factory), inputs, ""
    )
    skipped = (
        (Skipped("save, load and run again", round_trip_result.reason),)
        if round_trip_result.reason and not round_trip_difference
        else ()
    )
    return ForwardEffects(
        module=factory.target,
        changed_values=find_python_changes(old_snapshot, new_snapshot),
        mutated_paths=find_mutated(old_snapshot, new_snapshot),
        first_uses=simulated_pass.first_uses,
        round_trip_difference=round_trip_difference,
        skipped=skipped,
    )


def _run_forward(module: nn.Module, inputs: Inputs, *, training: bool) -> None:
    copies = inputs.map_tensors(Tensor.clone)
    with prepare_forward(module, training=training):
        module(*copies.args, **copies.kwargs)

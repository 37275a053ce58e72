"""ModuleFactory x Inputs -> ForwardEffects: state that forward changes, uses, and does not save."""

from dataclasses import dataclass
from typing import Final

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from ckptool.model import Constancy, ModuleState, Skipped
from ckptool.modules.snapshot import mutated, take
from ckptool.modules.usercode import UserCodeError
from ckptool.verification import inputs as words
from ckptool.verification import simulated
from ckptool.verification.facts import Exercise
from ckptool.verification.instances import Maker
from ckptool.verification.lived import changes
from ckptool.verification.passes import Inputs, prepared
from ckptool.verification.survival import round_trip

_DEVICE: Final = torch.device("cuda", 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Fresh:
    """InstanceFactory of freshly built modules, without loading weights."""

    maker: Maker

    def make(self) -> nn.Module:
        return self.maker.make()


def exercise(maker: Maker, inputs: Inputs | None) -> Exercise:
    """Run forward in eval and in train mode, and compare snapshots taken before and after.

    Without inputs the result has only the module's name.

    Raises:
        ModuleError: it cannot be built.
        UsageError: forward does not accept the inputs.
    """
    module = maker.make()
    if inputs is None:
        return Exercise(maker.target)
    words.check(module, inputs)
    before = take(module)
    try:
        for training in (False, True):
            _run(module, inputs, training=training)
    except UserCodeError as error:
        return Exercise(maker.target, skipped=(Skipped("a forward pass", f"it raised {error}"),))
    after = take(module)
    used = simulated.run(maker.make(), inputs, _DEVICE)
    trip, how = round_trip(_Fresh(maker), inputs, "")
    left = (Skipped("save, load and run again", trip.reason),) if trip.reason and not how else ()
    return Exercise(
        module=maker.target,
        changed=changes(before, after),
        mutated=mutated(before, after),
        used=used.used,
        ran=used.error is None,
        round_trip=how,
        skipped=left,
    )


def informed(state: ModuleState, found: Exercise) -> ModuleState:
    """Return the ModuleInfo with `constancy` and first `used` line of unsaved tensors updated."""
    held = dict(state.held)
    for key, one in state.unsaved.items():
        constancy = Constancy.MUTATED if key in found.mutated else one.constancy
        held[key] = replace(one, constancy=constancy, used=found.used.get(key, one.used))
    return replace(state, held=held, skipped=(*state.skipped, *found.skipped))


def _run(module: nn.Module, inputs: Inputs, *, training: bool) -> None:
    given = inputs.each(Tensor.clone)
    with prepared(module, training=training):
        module(*given.args, **given.kwargs)

"""A module x inputs -> Exercise: what running it changes, uses and loses."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from ckptool.model import Constancy, ModuleState, Skipped
from ckptool.modules.tensors import same_bytes
from ckptool.modules.usercode import UserCodeError
from ckptool.modules.walk import join, qualified, walk
from ckptool.verification import inputs as words
from ckptool.verification import simulated
from ckptool.verification.facts import Exercise, PythonChange
from ckptool.verification.instances import Maker
from ckptool.verification.passes import Inputs, prepared
from ckptool.verification.survival import round_trip

_DEVICE: Final = torch.device("cuda", 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Fresh:
    """Instances as they are built."""

    maker: Maker

    def make(self) -> nn.Module:
        return self.maker.make()


def exercise(maker: Maker, inputs: Inputs | None) -> Exercise:
    """Run a module as for evaluation and as for training, and look what it did.

    Raises:
        ModuleError: it cannot be built.
        UsageError: forward does not take the inputs.
    """
    module = maker.make()
    if inputs is None:
        return Exercise(maker.target)
    words.check(module, inputs)
    before, values = _python(module), _values(module)
    try:
        for training in (False, True):
            _run(module, inputs, training=training)
    except UserCodeError as error:
        return Exercise(maker.target, skipped=(Skipped("a forward pass", f"it raised {error}"),))
    used = simulated.run(maker.make(), inputs, _DEVICE)
    trip, how = round_trip(_Fresh(maker), inputs, "")
    left = (Skipped("save, load and run again", trip.reason),) if trip.reason and not how else ()
    return Exercise(
        module=maker.target,
        changed=tuple(_changes(before, _python(module), module)),
        mutated=tuple(_mutated(values, _values(module))),
        used=used.used,
        ran=used.error is None,
        round_trip=how,
        skipped=left,
    )


def informed(state: ModuleState, found: Exercise) -> ModuleState:
    """Return what is known of a module, with what running it added."""
    held = dict(state.held)
    for key, one in state.unsaved.items():
        constancy = Constancy.MUTATED if key in found.mutated else one.constancy
        held[key] = replace(one, constancy=constancy, used=found.used.get(key, one.used))
    return replace(state, held=held, skipped=(*state.skipped, *found.skipped))


def _run(module: nn.Module, inputs: Inputs, *, training: bool) -> None:
    given = inputs.each(Tensor.clone)
    with prepared(module, training=training):
        module(*given.args, **given.kwargs)


def _python(module: nn.Module) -> dict[str, Any]:
    """Return the flags, numbers and texts that the modules of a tree hold as attributes."""
    internal = vars(nn.Module()).keys()
    return {
        join(prefix, name): value
        for prefix, member in module.named_modules()
        for name, value in vars(member).items()
        if name not in internal and isinstance(value, bool | int | float | str | None)
    }


def _values(module: nn.Module) -> dict[str, Any]:
    """Return copies of the tensors and arrays that no state_dict has."""
    saved = module.state_dict().keys()
    return {
        found.path: found.value.detach().clone()
        if isinstance(found.value, Tensor)
        else found.value.copy()
        for found in walk(module).found
        if found.path not in saved
    }


def _changes(
    before: Mapping[str, Any], after: Mapping[str, Any], module: nn.Module
) -> Iterator[PythonChange]:
    for path, value in before.items():
        now = after.get(path, value)
        # What begins as None is made when it is first needed: a cache, as a rule.
        if value is not None and repr(now) != repr(value):
            owner = module.get_submodule(path.rpartition(".")[0])
            yield PythonChange(
                path, repr(value), repr(now), isinstance(value, bool), qualified(type(owner))
            )


def _mutated(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for path, value in before.items():
        if path in after and same_bytes(value, after[path]) is False:
            yield path

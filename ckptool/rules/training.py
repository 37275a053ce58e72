"""Checkpoint -> hits: legacy containers and training state in a release (CK305, CK309)."""

import shlex
from collections.abc import Iterator
from typing import Final

from ckptool.model import Checkpoint, Container, State
from ckptool.rules.registry import Hit, Level, Rule, check, hit

_OLD: Final = {
    Container.TORCH_LEGACY: "the stream of torch before 1.6, not a zip",
    Container.TORCH_TAR: "the tar of torch before 0.2, not a zip",
}


@check(
    Checkpoint,
    Rule(
        code="CK305",
        name="legacy-serialization",
        level=Level.WARNING,
        message="the file is {what}",
        why="It cannot be mapped (torch.load(mmap=True) refuses it), so every load reads and "
        "copies all of it; tools that look into zips do not know it; and files as old as that "
        "were often written by Python 2.",
        fix="ckptool migrate {path} -o NEW.pth writes the same state as a zip",
        example="torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)",
    ),
)
def legacy_serialization(checkpoint: Checkpoint) -> Iterator[Hit]:
    if checkpoint.container in _OLD:
        yield hit("", what=_OLD[checkpoint.container], path=shlex.quote(str(checkpoint.path)))


_TRAINING: Final = {
    "optimizer": ("optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "optim"),
    "scheduler": (
        "scheduler", "schedulers", "lr_scheduler", "lr_schedulers", "scheduler_state_dict",
        "lr_scheduler_state_dict",
    ),
    "random number generators": (
        "rng", "rng_state", "rng_states", "random_states", "torch_rng_state", "cuda_rng_state",
    ),
    "gradient scaler": ("scaler", "grad_scaler", "amp", "amp_scaler", "scaler_state_dict"),
    "callbacks": ("callbacks",),
    "loops": ("loops",),
}  # fmt: skip
"""Kind of training state -> top-level names that frameworks and scripts use for it."""


@check(
    Checkpoint,
    Rule(
        code="CK309",
        name="training-state-in-release",
        level=Level.NOTE,
        message="besides the model the file holds what training needs to go on: {what}{nbytes}",
        why="Right in a training run, and dead weight in a release: two moments of Adam are twice "
        "the model, and callbacks and loops carry paths and settings of the machine.",
        fix="For a release: ckptool migrate {path}{at} -o NEW.safetensors --drop-extra",
        example='torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, '
        "path)",
        gate=Level.WARNING,
    ),
)
def training_state(checkpoint: Checkpoint) -> Iterator[Hit]:
    places = _places(checkpoint)
    states = [s for s in checkpoint.states if s.at not in _inside(checkpoint, places) and s.tensors]
    models = [s for s in states if s.role != "tensors"] or states
    if not places or not models:
        return
    total = sum(_bytes(s) for s in checkpoint.states if s.at in _inside(checkpoint, places))
    yield hit(
        next(iter(places)),
        what=", ".join(dict.fromkeys(places.values())),
        nbytes=f", {total:,} bytes of tensors" if total else "",
        path=shlex.quote(str(checkpoint.path)),
        at=f" --at {models[0].at}" if len(models) == 1 and models[0].at else "",
        places=list(places),
    )


def _places(checkpoint: Checkpoint) -> dict[str, str]:
    """Return top-level name -> kind of training state, for the names that are such state."""
    optimizers = {s.at.split(".", 1)[0]: "optimizer" for s in _optimizers(checkpoint) if s.at}
    tops = dict.fromkeys(
        place.split(".", 1)[0]
        for place in (*(s.at for s in checkpoint.states), *(e.at for e in checkpoint.entries))
    )
    known = {name: words for words, names in _TRAINING.items() for name in names}
    named = {top: known[top] for top in tops if top in known}
    return optimizers | named


def _optimizers(checkpoint: Checkpoint) -> Iterator[State]:
    return (state for state in checkpoint.states if state.role == "optimizer")


def _inside(checkpoint: Checkpoint, places: dict[str, str]) -> set[str]:
    return {s.at for s in checkpoint.states if s.at.split(".", 1)[0] in places}


def _bytes(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.tensors.values())

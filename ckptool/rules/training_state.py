"""Checkpoint -> hits: files of a training run (CK305, CK309)."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare.states import find_loaded_state
from ckptool.formats.safetensors.writer import SAFETENSORS_DTYPES
from ckptool.model import Checkpoint, Container, PlainEntry, StateDict, TensorInfo
from ckptool.phrases import format_size, join_limited, quote_code, quote_python
from ckptool.rules.fixes.commands import format_convert_command, name_result
from ckptool.rules.registry import CONVERT, Level, Rule, RuleHit, check, hit

_LEGACY_CONTAINERS: Final = {
    Container.TORCH_LEGACY: "in the format of torch before 1.6, not a zip archive",
    Container.TORCH_TAR: "in the format of torch before 0.2 (tar), not a zip archive",
}


@check(
    Checkpoint,
    Rule(
        code="CK305",
        name="legacy-serialization",
        level=Level.WARNING,
        summary="the file is {what}",
        why=(
            "It cannot be memory-mapped (torch.load(mmap=True) refuses it), so every load reads "
            "and copies all of it; tools that read zip archives cannot open it; and files of "
            "that age were often written by Python 2."
        ),
        fix="To write the same content as a zip: {command}",
        general_command=CONVERT,
        example="torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)",
    ),
)
def find_legacy_serialization(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    if checkpoint.container in _LEGACY_CONTAINERS:
        yield hit(
            "",
            what=_LEGACY_CONTAINERS[checkpoint.container],
            command=format_convert_command(checkpoint),
        )


_TRAINING_STATE_NAMES: Final = {
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
_MAX_LISTED: Final = 3
_MAX_LEVELS: Final = 3
"""Levels of nesting at which an optimizer is told from the model beside it."""


@check(
    Checkpoint,
    Rule(
        code="CK309",
        name="training-state-in-release",
        level=Level.NOTE,
        summary="the file also contains training state",
        detail="{what}{nbytes}",
        why=(
            "Useful in a training run, dead weight in a release: the two moments of Adam are "
            "twice the size of the model, and callbacks and loops contain paths and settings of "
            "the machine."
        ),
        fix="For a release: {remedy}",
        general_advice=(
            "For a release: ckptool convert FILE -o NEW.safetensors --at model --weights-only"
        ),
        example=(
            'torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)'
        ),
        gate=Level.WARNING,
    ),
)
def find_training_state(checkpoint: Checkpoint) -> Iterator[RuleHit]:
    roles_by_place = _find_training_roles(checkpoint)
    training_places = _find_places_within(checkpoint, roles_by_place)
    states = [
        state for state in checkpoint.states if state.at not in training_places and state.tensors
    ]
    model_states = [state for state in states if state.role != "tensors"] or states
    if not roles_by_place or not model_states:
        return
    total_nbytes = sum(state.nbytes for state in checkpoint.states if state.at in training_places)
    yield hit(
        next(iter(roles_by_place)),
        what=", ".join(dict.fromkeys(roles_by_place.values())),
        nbytes=f", {format_size(total_nbytes)} of tensor data" if total_nbytes else "",
        remedy=_advise_release(checkpoint, model_states),
        places=list(roles_by_place),
    )


def _advise_release(checkpoint: Checkpoint, model_states: list[StateDict]) -> str:
    """Return the command or the code that writes the model alone."""
    state = find_loaded_state(checkpoint)
    state = state if state in model_states else model_states[0]
    others = join_limited([s.at for s in model_states if s is not state], _MAX_LISTED, quote_code)
    which = f" (or of {others})" if others else ""
    if not state.non_tensors and all(map(_fits_safetensors, state.tensors.values())):
        at = ("--at", state.at) if state.at else ()
        whose = f"that of `{state.at}`{which}: " if which else ""
        options = (*at, "--weights-only")
        return f"{whose}{format_convert_command(checkpoint, *options, suffix='.safetensors')}"
    if state.at.isidentifier() and state.role == "state_dict":
        name = quote_python(name_result(checkpoint))
        return f"torch.save(checkpoint[{quote_python(state.at)}], {name})"
    return f"save the state_dict alone, which is at `{state.at or '.'}`{which}"


def _fits_safetensors(tensor: TensorInfo) -> bool:
    is_dense = tensor.layout in {"strided", "chunked"} and not tensor.wrapper
    return is_dense and tensor.dtype in SAFETENSORS_DTYPES and not tensor.is_on_meta


def _find_training_roles(checkpoint: Checkpoint) -> dict[str, str]:
    """Return place -> kind of training state: of optimizers, and of top-level names."""
    model_places = {
        place
        for state in checkpoint.states
        if state.role in {"state_dict", "module"}
        for place in _iter_places_above(state.at)
    }
    optimizer_roles = {
        next((p for p in _iter_places_above(state.at) if p not in model_places), state.at): (
            "optimizer"
        )
        for state in _iter_optimizer_states(checkpoint)
        if state.at
    }
    top_names = dict.fromkeys(
        at.split(".", 1)[0]
        for at in (
            *(state.at for state in checkpoint.states),
            *(entry.at for entry in checkpoint.entries if not _is_empty(entry)),
        )
    )
    known_roles = {name: role for role, names in _TRAINING_STATE_NAMES.items() for name in names}
    entry_roles = {
        top_name: known_roles[top_name] for top_name in top_names if top_name in known_roles
    }
    return optimizer_roles | entry_roles


def _is_empty(entry: PlainEntry) -> bool:
    """Whether a training script left the entry empty: None, or no elements."""
    return entry.text == "None" or entry.value in ([], {})


def _iter_places_above(place: str) -> Iterator[str]:
    """Yield the first places on the way to `place`, the top-level name first, and `place` last."""
    steps = place.split(".", _MAX_LEVELS)
    return (".".join(steps[: count + 1]) for count in range(len(steps)))


def _iter_optimizer_states(checkpoint: Checkpoint) -> Iterator[StateDict]:
    return (state for state in checkpoint.states if state.role == "optimizer")


def _find_places_within(checkpoint: Checkpoint, roles_by_place: dict[str, str]) -> set[str]:
    return {
        state.at
        for state in checkpoint.states
        if any(place in roles_by_place for place in _iter_places_above(state.at))
    }

"""Checkpoint -> StateDict: by its place in the file, or by how well it matches a module."""

from types import MappingProxyType
from typing import Final

from ckptool.compare.renames import WRAPPERS
from ckptool.errors import UsageError
from ckptool.model import Checkpoint, ModuleInfo, StateDict


def get_state(checkpoint: Checkpoint, at: str) -> StateDict:
    """Return the state at `at` ("." is the root); without tensors there, an empty state."""
    place = "" if at == "." else at
    for state in checkpoint.states:
        if state.at == place:
            return state
    return StateDict(
        at=place, tensors=MappingProxyType({}), non_tensors=_find_child_keys(checkpoint, place)
    )


def require_state(checkpoint: Checkpoint, at: str) -> StateDict:
    """Return the state at `at`.

    Raises:
        UsageError: the file has no state there.
    """
    state = get_state(checkpoint, at)
    if not state.tensors and all(candidate.at != state.at for candidate in checkpoint.states):
        places = ", ".join(s.at or "." for s in checkpoint.states) or "none"
        raise UsageError(f"{checkpoint.path}: no state at --at {at}; it has: {places}")
    return state


def find_best_state(checkpoint: Checkpoint, module: ModuleInfo) -> StateDict:
    """Return the state that matches `module` best: the first of several, empty if none."""
    if not checkpoint.states:
        return StateDict(at="", tensors=MappingProxyType({}))
    candidates = [s for s in checkpoint.states if s.role != "tensors"] or checkpoint.states
    return max(candidates, key=lambda state: score_match(state, module))


_LOADED_PLACES: Final = (
    "",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
)
"""Places that training code loads a model from, the first that is there."""


def find_loaded_state(checkpoint: Checkpoint) -> StateDict | None:
    """Return the state that is in the usual place for a model's, None if there is none."""
    states_by_place = {
        state.at: state
        for state in checkpoint.states
        if state.role in {"state_dict", "module"} and state.tensors
    }
    places = (place for place in _LOADED_PLACES if place in states_by_place)
    return next((states_by_place[place] for place in places), None)


def equally_good_states(
    checkpoint: Checkpoint, module: ModuleInfo, chosen_state: StateDict
) -> tuple[str, ...]:
    """Return `at` ("." for the root) of other states that match as well as `chosen_state`."""
    best_score = score_match(chosen_state, module)
    other_states = [s for s in checkpoint.states if s.at != chosen_state.at and s.role != "tensors"]
    return tuple(
        s.at or "." for s in other_states if s.tensors and score_match(s, module) == best_score
    )


def score_match(state: StateDict, module: ModuleInfo) -> tuple[int, int]:
    """Return (tensors that match, exactly or without wrapper segments; -unmatched tensors)."""
    expected = {
        (key, module_tensor.tensor.shape) for key, module_tensor in module.saved_tensors.items()
    }
    last_segments = {key.rsplit(".", 1)[-1] for key, _ in expected}
    tails = {_key_tail(key) for key, _ in expected}
    exact_count = sum((key, t.shape) in expected for key, t in state.tensors.items())
    loose_count = sum(
        _key_tail(key) in tails and key.rsplit(".", 1)[-1] in last_segments for key in state.tensors
    )
    return max(exact_count, min(loose_count, len(expected))), exact_count - len(state.tensors)


def _key_tail(key: str) -> str:
    return ".".join([s for s in key.split(".") if s not in WRAPPERS][-2:])


def _find_child_keys(checkpoint: Checkpoint, at: str) -> dict[str, str]:
    prefix = f"{at}." if at else ""
    places = [s.at for s in checkpoint.states] + [e.at for e in checkpoint.entries]
    relative_places = [p.removeprefix(prefix) for p in places if p.startswith(prefix) and p != at]
    return {name.split(".", 1)[0]: "no tensor" for name in relative_places if name}

"""Checkpoint -> StateDict: by its place in the file, or by how well it matches a module."""

from types import MappingProxyType
from typing import Final

from msgspec import Struct

from ckptool.compare.renames import WRAPPERS
from ckptool.errors import UsageError
from ckptool.model import Checkpoint, ModuleInfo, StateDict
from ckptool.phrases import join_limited

_MAX_LISTED: Final = 20


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
        places = join_limited([s.at or "." for s in checkpoint.states], _MAX_LISTED) or "none"
        raise UsageError(f"{checkpoint.path}: no state at --at {at}; it has: {places}")
    return state


def find_best_state(checkpoint: Checkpoint, module: ModuleInfo) -> StateDict:
    """Return the state that matches `module` best: the first of several, empty if none."""
    if not checkpoint.states:
        return StateDict(at="", tensors=MappingProxyType({}))
    candidates = [s for s in checkpoint.states if s.role != "tensors"] or checkpoint.states
    expected = _index_expected(module)
    return max(candidates, key=lambda state: _score_against(state, expected))


def equally_good_states(
    checkpoint: Checkpoint, module: ModuleInfo, chosen_state: StateDict
) -> tuple[str, ...]:
    """Return `at` ("." for the root) of other states that match as well as `chosen_state`."""
    expected = _index_expected(module)
    best_score = _score_against(chosen_state, expected)
    other_states = [s for s in checkpoint.states if s.at != chosen_state.at and s.role != "tensors"]
    return tuple(
        s.at or "." for s in other_states if s.tensors and _score_against(s, expected) == best_score
    )


def score_match(state: StateDict, module: ModuleInfo) -> tuple[int, int]:
    """Return (tensors that match, exactly or without wrapper segments; -unmatched tensors)."""
    return _score_against(state, _index_expected(module))


class _ExpectedTensors(Struct, frozen=True):
    """What a module saves, made once for all states of a file."""

    forms: frozenset[tuple[str, tuple[int, ...]]]
    """(key, shape) of each tensor."""
    tails: frozenset[str]
    last_segments: frozenset[str]


def _index_expected(module: ModuleInfo) -> _ExpectedTensors:
    saved_tensors = module.saved_tensors
    return _ExpectedTensors(
        frozenset((key, t.tensor.shape) for key, t in saved_tensors.items()),
        frozenset(map(_key_tail, saved_tensors)),
        frozenset(key.rsplit(".", 1)[-1] for key in saved_tensors),
    )


def _score_against(state: StateDict, expected: _ExpectedTensors) -> tuple[int, int]:
    exact_count = sum((key, t.shape) in expected.forms for key, t in state.tensors.items())
    loose_count = sum(
        _key_tail(key) in expected.tails and key.rsplit(".", 1)[-1] in expected.last_segments
        for key in state.tensors
    )
    return max(exact_count, min(loose_count, len(expected.forms))), exact_count - len(state.tensors)


def _key_tail(key: str) -> str:
    return ".".join([s for s in key.split(".") if s not in WRAPPERS][-2:])


def _find_child_keys(checkpoint: Checkpoint, at: str) -> dict[str, str]:
    prefix = f"{at}." if at else ""
    places = [s.at for s in checkpoint.states] + [e.at for e in checkpoint.entries]
    relative_places = [p.removeprefix(prefix) for p in places if p.startswith(prefix) and p != at]
    return {name.split(".", 1)[0]: "no tensor" for name in relative_places if name}

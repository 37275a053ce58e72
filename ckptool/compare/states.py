"""Checkpoint -> StateDict: by its place in the file, or by how well it matches a module."""

from bisect import bisect
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.renames import WRAPPERS
from ckptool.errors import CorruptCheckpointError, NoStateError
from ckptool.model import (
    Checkpoint,
    IssueKind,
    ModuleInfo,
    PlainEntry,
    StateDict,
    TensorInfo,
    join_key,
)
from ckptool.phrases import cut_middle, format_literal, join_limited

T = TypeVar("T")

_MAX_LISTED: Final = 20
_MAX_NAMES: Final = 5
_PLAIN_DATA: Final = "plain data without tensors"


def require_undamaged(*checkpoints: Checkpoint) -> None:
    """Raise if reading of a file stopped: what follows is not known, so that it equals nothing.

    Raises:
        CorruptCheckpointError: one of the files is damaged.
    """
    for checkpoint in checkpoints:
        if checkpoint.damage:
            raise CorruptCheckpointError(checkpoint.path, checkpoint.damage)


def get_state(checkpoint: Checkpoint, at: str) -> StateDict:
    """Return the state at `at` ("." is the root); without tensors there, an empty state."""
    place = "" if at == "." else at
    for state in checkpoint.states:
        if state.at == place:
            return state
    return StateDict(
        at=place, tensors=MappingProxyType({}), non_tensors=_find_child_keys(checkpoint, place)
    )


def _get_state_or_part(checkpoint: Checkpoint, at: str) -> StateDict:
    """Return the state at `at`, or the part of a state whose keys begin with the rest of `at`.

    A file whose keys are "encoder.weight" and "decoder.weight" has a part at "encoder", with the
    key "weight".
    """
    state = get_state(checkpoint, at)
    if state.tensors:
        return state
    owner, prefix = split_part(checkpoint, at)
    return state if owner is None else _take_part(owner, prefix)


def split_part(checkpoint: Checkpoint, at: str) -> tuple[StateDict | None, str]:
    """Return the state that has a part at `at`, and the prefix of its keys ("encoder.").

    The innermost state of several; None and "" if none has keys there.
    """
    for state in sorted(checkpoint.states, key=lambda state: -len(state.at)):
        inner = at.removeprefix(f"{state.at}.") if state.at else at
        if inner not in ("", ".", at if state.at else ""):
            prefix = f"{inner}."
            if any(key.startswith(prefix) for key in state.tensors):
                return state, prefix
    return None, ""


def find_part_at(checkpoint: Checkpoint, submodule: ModuleInfo, path: str) -> str | None:
    """Return the place of the part called `path`, if it matches the sub-module best; else None.

    A file of the whole module has the sub-module's state below the sub-module's path.
    """
    best_state = find_best_state(checkpoint, submodule)
    part = _get_state_or_part(checkpoint, join_key(best_state.at, path))
    is_better = score_match(part, submodule) > score_match(best_state, submodule)
    return part.at if is_better else None


def _take_part(state: StateDict, prefix: str) -> StateDict:
    """Return the state of the keys below `prefix`, without it."""

    def strip(values: Mapping[str, T]) -> dict[str, T]:
        return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}

    owner = prefix.removesuffix(".")
    versions = None if state.versions is None else {"": state.versions.get(owner)}
    return StateDict(
        at=join_key(state.at, owner),
        tensors={key: replace(tensor, key=key) for key, tensor in strip(state.tensors).items()},
        role=state.role,
        versions=None if versions is None else versions | strip(state.versions or {}),
        module_metadata={
            **({"": state.module_metadata[owner]} if owner in state.module_metadata else {}),
            **strip(state.module_metadata),
        },
        non_tensors=strip(state.non_tensors),
        container_keys=tuple(strip(dict.fromkeys(state.container_keys))),
        unsaved_tensors=strip(state.unsaved_tensors),
    )


def require_state(checkpoint: Checkpoint, at: str) -> StateDict:
    """Return the state at `at`.

    Raises:
        NoStateError: the file has no state there.
    """
    state = get_state(checkpoint, at)
    if not state.tensors and all(candidate.at != state.at for candidate in checkpoint.states):
        raise _explain_missing_state(checkpoint, at)
    return state


def require_state_or_part(checkpoint: Checkpoint, at: str) -> StateDict:
    """Return the state at `at`, or the part of a state there.

    A mapping of other things than tensors is a state, too: of a module without parameters.

    Raises:
        NoStateError: the file has nothing there, or no mapping.
    """
    state = _get_state_or_part(checkpoint, at)
    value = None if state.tensors else _find_plain_value(checkpoint, state.at)
    if isinstance(value, dict):
        return replace(state, non_tensors={str(key): "no tensor" for key in value})
    is_empty = not (state.tensors or state.non_tensors or state.unsaved_tensors)
    if is_empty and state.at and all(other.at != state.at for other in checkpoint.states):
        raise _explain_missing_state(checkpoint, at)
    return state


def _explain_missing_state(checkpoint: Checkpoint, at: str) -> NoStateError:
    places = join_limited([s.at or "." for s in checkpoint.states], _MAX_LISTED) or "none"
    content = describe_place(checkpoint, at)
    is_there = f": it is {content}" if content else ""
    return NoStateError(f"{checkpoint.path}: no state at --at {at}{is_there}; it has: {places}")


def describe_place(checkpoint: Checkpoint, at: str) -> str:
    """Return what is at a place without a state: "plain data, {'lr': 0.1}"; "" for nothing."""
    for state in checkpoint.states:
        tensor = state.tensors.get(at.removeprefix(f"{state.at}.") if state.at else at)
        if tensor is not None:
            return f"one tensor, {tensor.dtype} {list(tensor.shape)}"
    texts = {entry.at: entry.text for entry in checkpoint.entries}
    if at in texts:
        return f"{_PLAIN_DATA}, {cut_middle(texts[at])}"
    names = [place.removeprefix(f"{at}.") for place in texts if place.startswith(f"{at}.")]
    if names:
        return f"{_PLAIN_DATA}, with {join_limited(names, _MAX_NAMES)}"
    value = _find_plain_value(checkpoint, at)
    return "" if value is None else f"{_PLAIN_DATA}, {cut_middle(format_literal(value))}"


def _find_plain_value(checkpoint: Checkpoint, at: str) -> object:
    """Return the plain value at a place, also inside one of the file; None if there is none."""
    for entry in checkpoint.entries:
        if entry.at == at:
            return entry.value
        if at.startswith(f"{entry.at}."):
            value, path = entry.value, at.removeprefix(f"{entry.at}.").split(".")
            while path and isinstance(value, dict) and path[0] in value:
                value = value[path.pop(0)]
            return None if path else value
    return None


def find_best_state(checkpoint: Checkpoint, module: ModuleInfo) -> StateDict:
    """Return the state that matches `module` best, empty if there is none.

    Of several that match equally well, the one in the usual place for a model's, else the first;
    in any case the one that the module's framework loads.
    """
    if not checkpoint.states:
        return StateDict(at="", tensors=MappingProxyType({}))
    candidates = list_model_states(checkpoint) or checkpoint.states
    if module.state_place is not None:
        for state in candidates:
            if state.at == module.state_place:
                return state
        if any(issue.kind is IssueKind.NESTED for issue in checkpoint.faults):
            return _describe_top_level(checkpoint)
    if len(candidates) == 1:
        return candidates[0]
    expected = _index_expected(module)
    loaded_state = find_loaded_state(checkpoint)
    return max(
        candidates, key=lambda state: (_score_against(state, expected), state is loaded_state)
    )


def _describe_top_level(checkpoint: Checkpoint) -> StateDict:
    """Return the top level of a file, which has no tensors, as a loader takes it."""
    places = (*(state.at for state in checkpoint.states), *(e.at for e in checkpoint.entries))
    names = dict.fromkeys(place.partition(".")[0] for place in places if place)
    return StateDict("", MappingProxyType({}), container_keys=tuple(names))


def list_model_states(checkpoint: Checkpoint) -> list[StateDict]:
    """Return the states that may be a model's: no optimizer's; loose tensors if nothing else is."""
    states = [s for s in checkpoint.states if s.role != "optimizer"]
    return [s for s in states if s.role != "tensors"] or states


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


def list_entries_outside(checkpoint: Checkpoint, places: Iterable[str]) -> list[PlainEntry]:
    """Return the plain entries that do not lie below one of `places`, in n log n steps."""
    prefixes: list[str] = []
    for prefix in sorted(f"{place}." for place in places if place):
        if not (prefixes and prefix.startswith(prefixes[-1])):
            prefixes.append(prefix)

    def is_outside(entry: PlainEntry) -> bool:
        index = bisect(prefixes, entry.at)
        return not (index and entry.at.startswith(prefixes[index - 1]))

    return [entry for entry in checkpoint.entries if is_outside(entry)]


_OBSERVER_NAMES: Final = frozenset({"min_val", "max_val"})
"""Buffers that torch's observers make without elements."""


def list_placeholders(state: StateDict) -> tuple[str, ...]:
    """Return the keys of parameters without elements, whose values are elsewhere; () if none.

    The ranks of a run have them in parts, or a lazy module has none yet.

    Several tensors `weight` of shape [0], or one of them and every second floating-point tensor: no
    layer has so.
    """
    is_model = state.role in {"state_dict", "module"}
    if not is_model or not any(tensor.shape == (0,) for tensor in state.tensors.values()):
        return ()
    weights = list_float_weights(state)
    keys = tuple(tensor.key for tensor in weights if tensor.shape == (0,))
    weight_count = sum(key.rpartition(".")[2] == "weight" for key in keys)
    is_half = len(keys) > 1 and 2 * len(keys) >= len(weights)
    is_partitioned = weight_count > 1 or bool(weight_count and is_half)
    return keys if is_partitioned else ()


def list_float_weights(state: StateDict) -> list[TensorInfo]:
    return [
        tensor
        for tensor in state.tensors.values()
        if tensor.dtype.startswith(("float", "bfloat"))
        and tensor.layout != "lazy"
        and tensor.key.rpartition(".")[2] not in _OBSERVER_NAMES
    ]


def list_valueless_keys(state: StateDict) -> dict[str, list[str]]:
    """Return why tensors have no values -> their keys, in the order of the file."""
    keys_by_reason: dict[str, list[str]] = {}
    for key, tensor in state.tensors.items():
        storage = tensor.storage
        if storage is not None and storage.device != "meta" and not tensor.parts:
            continue  # as nearly all tensors of nearly all files
        if tensor.layout == "lazy":
            keys_by_reason.setdefault("saved before initialization", []).append(key)
        elif _is_on_meta(tensor):
            keys_by_reason.setdefault("saved on meta, without data", []).append(key)
    return keys_by_reason


def _is_on_meta(tensor: TensorInfo) -> bool:
    """Whether it is on meta itself, or is made of tensors of which one is."""
    parts = tensor.parts
    return tensor.is_on_meta or (parts != () and any(_is_on_meta(part.tensor) for part in parts))


DISTRIBUTED_CLASSES: Final = (".DTensor", ".ShardedTensor")
"""Ends of the names of tensor classes whose elements are on several ranks."""


def find_distributed_key(checkpoint: Checkpoint) -> str:
    """Return the key of the first DTensor or ShardedTensor; "" if there is none."""
    keys = (
        tensor.key
        for state in checkpoint.states
        for tensor in state.tensors.values()
        if tensor.wrapper.endswith(DISTRIBUTED_CLASSES)
    )
    return next(keys, "")


def is_rank_part(tensor: TensorInfo) -> bool:
    """Whether it is one rank's part: a ShardedTensor, or a DTensor with a smaller local tensor."""
    if not tensor.wrapper:
        return False
    is_partial = any(component.tensor.shape != tensor.shape for component in tensor.parts)
    return "ShardedTensor" in tensor.wrapper or (tensor.wrapper.endswith(".DTensor") and is_partial)


def _key_tail(key: str) -> str:
    return ".".join([s for s in key.split(".") if s not in WRAPPERS][-2:])


def _find_child_keys(checkpoint: Checkpoint, at: str) -> dict[str, str]:
    prefix = f"{at}." if at else ""
    places = [s.at for s in checkpoint.states] + [e.at for e in checkpoint.entries]
    relative_places = [p.removeprefix(prefix) for p in places if p.startswith(prefix) and p != at]
    return {name.split(".", 1)[0]: "no tensor" for name in relative_places if name}

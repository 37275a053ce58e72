"""Old x new checkpoint -> RemainderDiff: what the files hold besides the compared tensors.

Parts are compared by their content fingerprints (`Checkpoint.contents`), tensors that a
state_dict() does not save by their values. What has no counterpart, or no fingerprint, is named.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from ckptool.compare.left_out_ties import SINGLE_NAME_CONTAINERS
from ckptool.compare.states import get_state
from ckptool.formats.safetensors.tie_metadata import TIES_KEY, parse_declared_ties
from ckptool.model import Checkpoint, StateDict, TensorInfo, join_key
from ckptool.phrases import pluralize
from ckptool.tensors import equality

_STATE_METADATA: Final = ("format", TIES_KEY)
"""Entries of safetensors that say of the state what another container says elsewhere."""
ALL_STATES: Final = "*"
"""Place of the comparison of all states."""


class RemainderDiff(Struct, frozen=True):
    """Comparison of what stands beside the compared tensors."""

    changed: tuple[str, ...] = ()
    """Places of parts that differ, or that one file alone has."""
    uncompared: Mapping[str, str] = {}
    """Part of both files that could not be compared -> reason."""
    parts: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """What (old, new) has beside the state and was not compared, as text."""

    @property
    def is_complete(self) -> bool:
        """Whether all that stands beside the tensors was compared."""
        return not (self.uncompared or any(self.parts))


def is_relocated(old: Checkpoint, new: Checkpoint, places: tuple[str, str]) -> bool:
    """Return whether container, place or role differ between the states at `places`."""
    old_role, new_role = get_state(old, places[0]).role, get_state(new, places[1]).role
    return (old.container, places[0], old_role) != (new.container, places[1], new_role)


def compare_remainder(old: Checkpoint, new: Checkpoint, places: tuple[str, str]) -> RemainderDiff:
    """Compare what stands beside the states at `places`.

    Of a relocated state only the parts that both files have at one place are compared. The files
    must have been opened with `Limits.contents`.
    """
    relocated = is_relocated(old, new, places)
    old_contents, new_contents = old.contents, new.contents
    shared_places = [place for place in old_contents if place in new_contents]
    changed = [
        place
        for place in shared_places
        if old_contents[place]
        and new_contents[place]
        and old_contents[place] != new_contents[place]
    ]
    unknown = {
        f"`{place}`": "it holds what has no fingerprint: a bare storage, or too many bytes"
        for place in shared_places
        if not (old_contents[place] and new_contents[place])
    }
    if not relocated:
        changed += [place for place in old_contents if place not in new_contents]
        changed += [place for place in new_contents if place not in old_contents]
    unsaved_changed, unsaved_unknown = _compare_unsaved(old, new, places)
    opaque = {part.what: part.reason for part in (*old.opaque, *new.opaque)}
    return RemainderDiff(
        (*changed, *unsaved_changed),
        {**opaque, **unknown, **unsaved_unknown},
        (
            tuple(_iter_parts_beside(old, places[0], new, relocated=relocated)),
            tuple(_iter_parts_beside(new, places[1], old, relocated=relocated)),
        ),
    )


def _compare_unsaved(
    old: Checkpoint, new: Checkpoint, places: tuple[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Compare the tensors that a state_dict() of the pickled modules does not save."""
    old_tensors, new_tensors = (
        _collect_unsaved(checkpoint, place)
        for checkpoint, place in zip((old, new), places, strict=True)
    )
    if not (old_tensors and new_tensors):
        return [], {}
    shared_keys = [key for key in old_tensors if key in new_tensors]
    results = equality.equal_many([(old_tensors[key], new_tensors[key]) for key in shared_keys])
    pairs = list(zip(shared_keys, results, strict=True))
    one_sided = sorted(old_tensors.keys() ^ new_tensors.keys())
    return (
        [*(key for key, is_equal in pairs if is_equal is False), *one_sided],
        {
            f"values of {key}": "its elements cannot be read"
            for key, is_equal in pairs
            if is_equal is None
        },
    )


def _collect_unsaved(checkpoint: Checkpoint, place: str) -> dict[str, TensorInfo]:
    states: tuple[StateDict, ...] = (
        checkpoint.states if place == ALL_STATES else (get_state(checkpoint, place),)
    )
    return {
        join_key(state.at, key): tensor
        for state in states
        for key, tensor in state.unsaved_tensors.items()
    }


def _iter_parts_beside(
    checkpoint: Checkpoint, place: str, other: Checkpoint, *, relocated: bool
) -> Iterator[str]:
    """Yield what has no counterpart: other states, and of a relocated state other parts."""
    if place == ALL_STATES:
        return
    for state in checkpoint.states:
        if state.at != place:
            yield f"`{state.at or '.'}` ({pluralize(len(state.tensors), 'tensor')})"
    if not relocated:
        return
    carried_parts = _find_carried_metadata(checkpoint, place)
    for part in checkpoint.contents:
        if part not in other.contents and part not in carried_parts:
            yield f"`{part}`"
    unsaved = len(get_state(checkpoint, place).unsaved_tensors)
    if unsaved and not get_state(other, place).unsaved_tensors:
        yield f"{pluralize(unsaved, 'tensor')} that its state_dict() does not save"


def _find_carried_metadata(checkpoint: Checkpoint, place: str) -> frozenset[str]:
    """Return the places of safetensors' metadata that the comparison of the tensors takes in."""
    if checkpoint.container not in SINGLE_NAME_CONTAINERS:
        return frozenset()
    ties = parse_declared_ties(checkpoint.metadata, get_state(checkpoint, place).tensors)
    return frozenset(f"__metadata__.{name}" for name in (*_STATE_METADATA, *ties))

"""Old x new checkpoint -> RemainderDiff: what the files hold besides the compared tensors.

Parts are compared by their content fingerprints (`Checkpoint.contents`), tensors that a
state_dict() does not save by their values. What has no counterpart, or no fingerprint, is named.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.left_out_ties import SINGLE_NAME_CONTAINERS
from ckptool.compare.states import get_state
from ckptool.formats.contents.collector import CLASS_SUFFIX, KEYS_SUFFIX, UNKNOWN_CONTENT
from ckptool.formats.safetensors.reader import VERSIONS_KEY
from ckptool.formats.safetensors.tie_metadata import TIES_KEY, parse_declared_ties
from ckptool.formats.sharded.reader import INDEX_PLACE
from ckptool.model import Checkpoint, Content, Kind, TensorInfo, all_tensors, join_key
from ckptool.phrases import pluralize, quote_code
from ckptool.values import equality
from ckptool.values.elements import unreadable_reason

_INDEX_SIZES: Final = frozenset(
    INDEX_PLACE.format(name=name) for name in ("total_size", "total_parameters")
)
"""Sums over the tensors, which are compared themselves."""
_NO_FINGERPRINT: Final = "it has too many bytes, or cannot be read"
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
    old_contents, new_contents = (
        _select_contents(checkpoint, place, other_container=old.container is not new.container)
        for checkpoint, place in zip((old, new), places, strict=True)
    )
    pairs = _pair_places(old_contents, new_contents, places)
    changed, unknown = _compare_contents(
        {place: (old_contents[place], new_contents[pairs[place]]) for place in pairs}
    )
    unpaired = (
        tuple(place for place in old_contents if place not in pairs),
        tuple(place for place in new_contents if place not in {*pairs.values()}),
    )
    if not relocated:
        changed += chain(*_drop_places_within(unpaired))
        changed += _iter_changed_flags(old, new, places[0])
    old_unsaved, new_unsaved = _collect_unsaved(old, places[0]), _collect_unsaved(new, places[1])
    unsaved_changed, unsaved_unknown = _compare_unsaved(old_unsaved, new_unsaved)
    opaque = {part.what: part.reason for part in (*old.opaque, *new.opaque)}
    return RemainderDiff(
        (*changed, *unsaved_changed),
        {**opaque, **unknown, **unsaved_unknown},
        (
            (
                *_iter_parts_beside(old, places[0], unpaired[0] if relocated else ()),
                *_list_only_here(old_unsaved, new_unsaved),
            ),
            (
                *_iter_parts_beside(new, places[1], unpaired[1] if relocated else ()),
                *_list_only_here(new_unsaved, old_unsaved),
            ),
        ),
    )


def _compare_contents(
    pairs: Mapping[str, tuple[Content, Content]],
) -> tuple[list[str], dict[str, str]]:
    """Return the places whose (old, new) content differs, and why others were not compared."""
    tensor_pairs = {
        place: (replace(old, key=""), replace(new, key=""))
        for place, (old, new) in pairs.items()
        if isinstance(old, TensorInfo) and isinstance(new, TensorInfo)
    }
    unique_pairs = list(dict.fromkeys(tensor_pairs.values()))
    answers = dict(zip(unique_pairs, equality.equal_many(unique_pairs), strict=True))
    results = {place: answers[pair] for place, pair in tensor_pairs.items()}
    changed: list[str] = []
    unknown: dict[str, str] = {}
    for place, (old, new) in pairs.items():
        if UNKNOWN_CONTENT in (old, new):
            unknown[f"`{place}`"] = _NO_FINGERPRINT
        elif results.get(place, old == new) is False:
            changed.append(place)
        elif results.get(place, True) is None:
            reasons = map(unreadable_reason, tensor_pairs[place])
            unknown[f"values of `{place}`"] = next(filter(None, reasons), "their parts differ")
    return changed, unknown


def _iter_changed_flags(old: Checkpoint, new: Checkpoint, place: str) -> Iterator[str]:
    """Yield the parameters of modules of which one file alone has requires_grad, at one place.

    A state_dict() has detached tensors: what else is saved as one does not count.
    """
    for state in old.states:
        other = get_state(new, state.at)
        if state.role == other.role == "module" and place in {ALL_STATES, state.at}:
            for key, tensor in state.tensors.items():
                other_tensor = other.tensors.get(key, tensor)
                if tensor.requires_grad != other_tensor.requires_grad:
                    yield f"{join_key(state.at, key)} (requires_grad)"


def _drop_places_within(
    unpaired: tuple[tuple[str, ...], tuple[str, ...]],
) -> tuple[list[str], list[str]]:
    """Leave out places of one file that lie within a place of the other.

    A part without a tensor is one place, and with a tensor in it several: it is the whole part that
    differs, and whether the others are equal was not looked at.
    """
    old, new = (frozenset(places) for places in unpaired)
    return (
        [place for place in unpaired[0] if new.isdisjoint(_iter_places_above(place))],
        [place for place in unpaired[1] if old.isdisjoint(_iter_places_above(place))],
    )


def _iter_places_above(place: str) -> Iterator[str]:
    return (place[:index] for index, char in enumerate(place) if char == "." and index)


def _select_contents(
    checkpoint: Checkpoint, place: str, *, other_container: bool
) -> dict[str, Content]:
    """Return the contents without those that the comparison of the tensors takes in: ties.

    Of files in two containers, also without what the container alone decides: the class of an
    object, `_metadata` and its copy in safetensors, the format in the metadata of safetensors, and
    the sizes that an index adds up.
    """
    left_out = _find_declared_ties(checkpoint, place)
    if other_container:
        versions = {join_key(place, "_metadata"), f"__metadata__.{VERSIONS_KEY}"}
        left_out |= {"__metadata__.format", *versions, *_INDEX_SIZES}
    return {
        part: content
        for part, content in checkpoint.contents.items()
        if part not in left_out
        and not (other_container and part.endswith((CLASS_SUFFIX, KEYS_SUFFIX)))
    }


def _pair_places(
    old_contents: Mapping[str, Content],
    new_contents: Mapping[str, Content],
    places: tuple[str, str],
) -> dict[str, str]:
    """Return place in the old file -> place in the new one: within the state, or the same."""
    old_prefix, new_prefix = (
        f"{place}." if place not in {"", ALL_STATES} else "" for place in places
    )
    pairs: dict[str, str] = {}
    for place in old_contents:
        moved = new_prefix + place.removeprefix(old_prefix)
        if place.startswith(old_prefix) and moved in new_contents:
            pairs[place] = moved
        elif place in new_contents:
            pairs[place] = place
    return pairs


def _compare_unsaved(
    old_tensors: Mapping[str, TensorInfo], new_tensors: Mapping[str, TensorInfo]
) -> tuple[list[str], dict[str, str]]:
    """Compare the tensors that a state_dict() of the pickled or live modules does not save."""
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


def _list_only_here(
    tensors: Mapping[str, TensorInfo], others: Mapping[str, TensorInfo]
) -> list[str]:
    """Return the unsaved tensors where the other side has none, as text.

    Buffers with persistent=False are what the module says that no file needs.
    """
    return [
        f"{quote_code(key)} (not in the state_dict)"
        for key, tensor in tensors.items()
        if not others and tensor.kind is not Kind.NON_PERSISTENT_BUFFER
    ]


def _collect_unsaved(checkpoint: Checkpoint, place: str) -> Mapping[str, TensorInfo]:
    if place != ALL_STATES:
        return get_state(checkpoint, place).unsaved_tensors
    return all_tensors(checkpoint, unsaved=True)


def _iter_parts_beside(
    checkpoint: Checkpoint, place: str, unpaired_places: Iterable[str]
) -> Iterator[str]:
    """Yield what has no counterpart: other states, and of a relocated state other parts."""
    if place == ALL_STATES:
        return
    for state in checkpoint.states:
        if state.at != place and state.tensors:
            yield f"`{state.at or '.'}` ({pluralize(len(state.tensors), 'tensor')})"
    other_places = tuple(f"{s.at}." for s in checkpoint.states if s.at and s.at != place)
    yield from (f"`{part}`" for part in unpaired_places if not part.startswith(other_places))


def _find_declared_ties(checkpoint: Checkpoint, place: str) -> set[str]:
    """Return the places of the metadata of safetensors, and of an index, that name a tied key."""
    if checkpoint.container not in SINGLE_NAME_CONTAINERS:
        return set()
    at = "" if place == ALL_STATES else place
    ties = parse_declared_ties(checkpoint.metadata, get_state(checkpoint, at).tensors)
    templates = ("__metadata__.{name}", INDEX_PLACE)
    return {template.format(name=name) for name in (TIES_KEY, *ties) for template in templates}

"""ConversionScope: what is written around the state, and the places that it strips."""

from collections.abc import Container, Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import PlanError
from ckptool.migration.plan.draft import Draft
from ckptool.model import Checkpoint, join_key

OPTIMIZER: Final = "optimizer"
"""Name of --strip that stands for all state of optimizers, wherever the file has it."""
_OPTIMIZER_PLACES: Final = "optimizer*"
_EXTRA_STATE: Final = "_extra_state"
_MAX_COMPARED_PLACES: Final = 2000


class ConversionScope(Struct, frozen=True):
    """What a conversion writes of a file: nothing that weights_only=True refuses."""

    is_state_alone: bool = False
    """Whether the state is the top level of the result, and nothing else is in it (--at)."""
    is_weights_only: bool = False
    """Whether only tensors and `_extra_state` of the state are written (--weights-only)."""
    strip: tuple[str, ...] = ()
    """Places, or globs of them, that are left out; "optimizer" is the state of all optimizers."""
    merges_shards: bool = False
    """Whether a sharded source becomes one file."""


class TreeChange(Struct, frozen=True, gc=False):
    """A value around the state that the result lacks, or has in another form."""

    place: str
    before: str
    """What it is in the source: "argparse.Namespace", "12 tensors"."""
    after: str = ""
    """What it is in the result: "dict"; "" if it is left out."""


def find_stripped_places(checkpoint: Checkpoint, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the outermost places of the file that `patterns` name, in the order of the file.

    Raises:
        PlanError: a pattern, other than "optimizer", names nothing that the file has.
    """
    if not patterns:
        return ()
    places = dict.fromkeys(_iter_places(checkpoint))
    stripped_places: dict[str, None] = {}
    for pattern in patterns:
        matches = [place for place in places if fnmatchcase(place, pattern)]
        if pattern == OPTIMIZER:
            matches += _find_optimizer_places(checkpoint, places)
        elif not matches:
            raise PlanError(_explain_unmatched_pattern(checkpoint, pattern, places))
        stripped_places |= dict.fromkeys(matches)
    return tuple(
        place
        for place in places
        if place in stripped_places and not _is_below(place, stripped_places)
    )


def strip_places(checkpoint: Checkpoint, stripped_places: Iterable[str]) -> Checkpoint:
    """Return the description without the states and entries at the stripped places."""
    stripped = frozenset(stripped_places)

    def is_kept(place: str) -> bool:
        return not (place in stripped or _is_below(place, stripped))

    return replace(
        checkpoint,
        states=tuple(state for state in checkpoint.states if is_kept(state.at)),
        entries=tuple(entry for entry in checkpoint.entries if is_kept(entry.at)),
    )


def restrict_draft(
    draft: Draft, conversion: ConversionScope, stripped_places: Iterable[str]
) -> Draft:
    """Return the draft without stripped keys, and without other keys if only weights are asked for.

    Raises:
        PlanError: no tensor is left.
    """
    stripped = frozenset(stripped_places)

    def is_kept(key: str) -> bool:
        place = join_key(draft.state.at, key)
        return not (place in stripped or _is_below(place, stripped))

    def is_weight(key: str) -> bool:
        return not conversion.is_weights_only or key.rpartition(".")[2] == _EXTRA_STATE

    items = {key: item for key, item in draft.items.items() if is_kept(key)}
    if not items:
        raise PlanError(f"{draft.checkpoint.path}: --strip leaves no tensor to write")
    return replace(
        draft,
        items=items,
        non_tensor_keys={
            key: source_key
            for key, source_key in draft.non_tensor_keys.items()
            if is_kept(key) and is_weight(key)
        },
        is_extracted=draft.is_extracted or conversion.is_state_alone,
    )


def _iter_places(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield every place of the file that has a value, each after the places that it lies in."""
    places = [state.at for state in checkpoint.states if state.at]
    for state in checkpoint.states:
        keys = (*state.tensors, *state.non_tensors, *state.container_keys)
        places += [join_key(state.at, key) for key in keys]
    for place in [*places, *(entry.at for entry in checkpoint.entries)]:
        yield from iter_outer_places(place)
        yield place


def iter_outer_places(place: str) -> Iterator[str]:
    """Yield the places that `place` lies in, outermost first: "a" and "a.b" of "a.b.c"."""
    end = place.find(".")
    while end > 0:
        yield place[:end]
        end = place.find(".", end + 1)


def _find_optimizer_places(checkpoint: Checkpoint, places: Iterable[str]) -> list[str]:
    roles = [state.at for state in checkpoint.states if state.role == OPTIMIZER and state.at]
    named = [p for p in places if "." not in p and fnmatchcase(p, _OPTIMIZER_PLACES)]
    return [*named, *roles]


def _is_below(place: str, outer_places: Container[str]) -> bool:
    return any(outer in outer_places for outer in iter_outer_places(place))


def _explain_unmatched_pattern(checkpoint: Checkpoint, pattern: str, places: Iterable[str]) -> str:
    names = list(places)
    matches = get_close_matches(pattern, names[:_MAX_COMPARED_PLACES], n=1)
    top_level = [name for name in names if "." not in name][:8]
    hint = f"did you mean `{matches[0]}`?" if matches else f"it has {', '.join(top_level)}"
    return f"{checkpoint.path}: --strip {pattern}: no such key in the file; {hint}"

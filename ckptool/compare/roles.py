"""Roles of tensors in a module -> two checkpoints with the tensors of some roles alone."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from ckptool.errors import UsageError
from ckptool.model import Checkpoint, Kind, StateDict, TensorInfo

ROLES: Final[Mapping[str, frozenset[Kind]]] = {
    "parameter": frozenset({Kind.PARAMETER}),
    "buffer": frozenset({Kind.BUFFER}),
    "non-persistent-buffer": frozenset({Kind.NON_PERSISTENT_BUFFER}),
    "attribute": frozenset(
        {Kind.ATTRIBUTE, Kind.CONTAINER, Kind.ARRAY, Kind.MODULE, Kind.CLASS_ATTRIBUTE}
    ),
}
"""Name of a role -> the kinds of tensors that have it."""


def parse_role_names(roles: Sequence[str] | str) -> tuple[str, ...]:
    """Return the names of roles; one may be given as text.

    Raises:
        UsageError: a role does not exist, or none was given.
    """
    names = [roles] if isinstance(roles, str) else list(roles)
    unknown = [name for name in names if name not in ROLES]
    if unknown or not names:
        name = repr(unknown[0]) if unknown else "no role"
        raise UsageError(f"roles=: {name} was given; known are {', '.join(ROLES)}")
    return tuple(names)


def parse_roles(roles: Sequence[str] | str) -> frozenset[Kind]:
    """Return the kinds of tensors that have one of the roles.

    Raises:
        UsageError: a role does not exist, or none was given.
    """
    return frozenset(kind for name in parse_role_names(roles) for kind in ROLES[name])


def restrict_to_roles(
    checkpoints: Sequence[Checkpoint], kinds: Collection[Kind]
) -> tuple[Checkpoint, ...]:
    """Return the checkpoints without the tensors of other kinds.

    What is no tensor is left out as well, unless attributes are asked for.

    A file does not record the kind of a tensor: there, a key has the kind that it has in another of
    the checkpoints, and a key that no module has stays.

    Raises:
        UsageError: no checkpoint records a kind.
    """
    kinds_by_key = {
        key: tensor.kind
        for checkpoint in checkpoints
        for state in checkpoint.states
        for key, tensor in (*state.tensors.items(), *state.unsaved_tensors.items())
        if tensor.kind is not None
    }
    if not kinds_by_key:
        raise UsageError("roles= selects tensors of a live module: none was given")

    def select(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        return {
            key: tensor
            for key, tensor in tensors.items()
            if (tensor.kind or kinds_by_key.get(key)) in {*kinds, None}
        }

    def restrict(state: StateDict) -> StateDict:
        return replace(
            state,
            tensors=select(state.tensors),
            unsaved_tensors=select(state.unsaved_tensors),
        )

    restricted = tuple(
        replace(checkpoint, states=tuple(map(restrict, checkpoint.states)))
        for checkpoint in checkpoints
    )
    if Kind.ATTRIBUTE in kinds:
        return restricted
    return tuple(replace(checkpoint, entries=(), contents={}) for checkpoint in restricted)


def add_unsaved_tensors(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the tensors that a state_dict lacks among the others."""
    states = (
        replace(state, tensors={**state.tensors, **state.unsaved_tensors})
        for state in checkpoint.states
    )
    return replace(checkpoint, states=tuple(states))

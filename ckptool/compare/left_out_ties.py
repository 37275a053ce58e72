"""Tensors of a safetensors file x what the ties of both files prove -> the names it leaves out.

safetensors stores a tied tensor under one of its names. The others are no missing keys where the
file's metadata declares the tie, or where the other file has it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from ckptool.formats.safetensors.tie_metadata import parse_declared_ties
from ckptool.model import Checkpoint, Container, TensorInfo, tied_keys

SINGLE_NAME_CONTAINERS: Final = (Container.SAFETENSORS, Container.SHARDED_SAFETENSORS)
"""Containers that store tied tensors once, under one key."""

Tensors = Mapping[str, TensorInfo]


def restore_declared_ties(checkpoint: Checkpoint, tensors: Tensors) -> Tensors:
    """Return `tensors` with the names that the metadata of a safetensors file declares as tied."""
    if checkpoint.container not in SINGLE_NAME_CONTAINERS:
        return tensors
    return _add_names(tensors, parse_declared_ties(checkpoint.metadata, tensors))


def restore_common_ties(
    old: Checkpoint, new: Checkpoint, old_tensors: Tensors, new_tensors: Tensors
) -> tuple[Tensors, Tensors]:
    """Return the tensors of both files, with the names that either leaves out and the other has."""
    new_tensors = _restore_ties_of(new, new_tensors, old_tensors)
    old_tensors = _restore_ties_of(old, old_tensors, new_tensors)
    return old_tensors, _restore_ties_of(new, new_tensors, old_tensors)


def restore_known_ties(
    checkpoint: Checkpoint,
    tensors: Tensors,
    other_keys: Collection[str],
    other_groups: Iterable[Sequence[str]],
) -> Tensors:
    """Return `tensors` with the names that a safetensors file leaves out and the other side has.

    Args:
        checkpoint: the file; one of another container is returned as it is.
        tensors: its tensors.
        other_keys: the keys of the other file, module or contract.
        other_groups: the groups of keys that are tied there.
    """
    if checkpoint.container not in SINGLE_NAME_CONTAINERS:
        return tensors
    ties = dict(parse_declared_ties(checkpoint.metadata, tensors))
    for group in other_groups:
        stored_key = next((key for key in group if key in tensors), None)
        if stored_key is not None:
            ties |= dict.fromkeys(group, stored_key)
    return _add_names(tensors, {key: ties[key] for key in ties if key in other_keys})


def find_retied_keys(container: Container, tensors: Tensors) -> dict[str, str]:
    """Return the names that were restored -> the key that the file stores."""
    if container not in SINGLE_NAME_CONTAINERS:
        return {}
    retied_keys: dict[str, str] = {}
    for group in tied_keys(tensors.values()):
        storage = tensors[group[0]].storage
        if storage is not None and storage.key in group:
            retied_keys |= {key: storage.key for key in group if key != storage.key}
    return retied_keys


def _restore_ties_of(checkpoint: Checkpoint, tensors: Tensors, other: Tensors) -> Tensors:
    if tensors.keys() >= other.keys():
        return tensors
    return restore_known_ties(checkpoint, tensors, other.keys(), tied_keys(other.values()))


def _add_names(tensors: Tensors, ties: Mapping[str, str]) -> Tensors:
    names = {name: key for name, key in ties.items() if name not in tensors}
    if not names:
        return tensors
    return {**tensors, **{name: replace(tensors[key], key=name) for name, key in names.items()}}

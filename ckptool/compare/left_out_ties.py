"""Tensors of a safetensors file x what the ties of both files prove -> the names it leaves out.

safetensors stores a tied tensor under one of its names. The others are no missing keys where the
file's metadata declares the tie, or where the other file has it. A module loads such a file only by
`safetensors.torch.load_model`, and not every one.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from ckptool.formats.safetensors.tie_metadata import parse_declared_ties
from ckptool.model import DTYPE_BITS, Checkpoint, Container, TensorInfo, tied_keys
from ckptool.phrases import quote_code

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
        stored_key = next((key for key in group if _is_stored(key, tensors)), None)
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


def _is_stored(key: str, tensors: Tensors) -> bool:
    """Whether the file has the tensor under this name, and not as one that was restored."""
    storage = tensors[key].storage if key in tensors else None
    return storage is not None and storage.key == key


def _restore_ties_of(checkpoint: Checkpoint, tensors: Tensors, other: Tensors) -> Tensors:
    if tensors.keys() >= other.keys():
        return tensors
    return restore_known_ties(checkpoint, tensors, other.keys(), tied_keys(other.values()))


def _add_names(tensors: Tensors, ties: Mapping[str, str]) -> Tensors:
    names = {name: key for name, key in ties.items() if name not in tensors}
    if not names:
        return tensors
    return {**tensors, **{name: replace(tensors[key], key=name) for name, key in names.items()}}


def find_load_model_refusal(
    module_tensors: Mapping[str, TensorInfo],
    file_keys: Collection[str],
    missing_keys: Iterable[str],
    unexpected_keys: Collection[str],
) -> str:
    """Return why `safetensors.torch.load_model(strict=True)` raises, "" if it loads.

    It takes every name but one of each group of tied names for one that the file leaves out. It
    raises where a second one is in the file, where torch's own upgrade fills one in, so that it is
    not missing, and where no tensor of a group covers its storage.

    Args:
        module_tensors: the tensors of the module's state_dict().
        file_keys: the keys of the file.
        missing_keys: what `load_state_dict(strict=False)` of the file returns as missing.
        unexpected_keys: what it returns as unexpected.
    """
    missing = set(missing_keys)
    for group in _iter_shared_groups(module_tensors.values()):
        complete_names = sorted(tensor.key for tensor in group if _is_complete(tensor))
        if not complete_names:
            return f"no tensor that shares storage with {quote_code(group[0].key)} covers all of it"
        kept_name = next((name for name in complete_names if name in file_keys), complete_names[0])
        for name in sorted(tensor.key for tensor in group):
            if name == kept_name:
                continue
            if name not in missing:
                tie = f"{quote_code(name)}, which is tied to {quote_code(kept_name)}"
                return f"it does not expect {tie}"
            missing.remove(name)
    if missing:
        return f"{quote_code(min(missing))} is missing"
    return f"{quote_code(min(unexpected_keys))} is unexpected" if unexpected_keys else ""


def _iter_shared_groups(tensors: Iterable[TensorInfo]) -> Iterator[Sequence[TensorInfo]]:
    """Yield the tensors of each storage that overlap, alone or several, as safetensors does."""
    by_storage: dict[object, list[TensorInfo]] = {}
    for tensor in tensors:
        if tensor.storage is not None and tensor.storage.nbytes:
            by_storage.setdefault(tensor.storage, []).append(tensor)
    for shared in by_storage.values():
        shared.sort(key=lambda tensor: (*_get_extent(tensor), tensor.key))
        group: list[TensorInfo] = []
        last_stop = 0
        for tensor in shared:
            start, stop = _get_extent(tensor)
            if group and start >= last_stop:
                yield group
                group = []
            group.append(tensor)
            last_stop = stop
        yield group


def _get_extent(tensor: TensorInfo) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage, and the one after its last."""
    nbytes = DTYPE_BITS.get(tensor.dtype, 8) // 8
    return tensor.storage_offset * nbytes, (tensor.storage_offset + tensor.numel) * nbytes


def _is_complete(tensor: TensorInfo) -> bool:
    storage = tensor.storage
    return storage is not None and not tensor.storage_offset and tensor.nbytes == storage.nbytes

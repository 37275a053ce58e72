"""A saved object -> SavedModules: the live modules in it, and what they hold besides."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ckptool.modules.walk import get_written_name
from ckptool.tracing.module_states import ModuleStates, iter_saved_tensors
from ckptool.tracing.origins import identify_storage
from ckptool.tracing.records import MAX_KEYS, SavedModule, UnsavedValue
from ckptool.tracing.training_objects import SavedContent, TrainingObjects, has_equal_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn


_MAX_PARTS: Final = 64
"""Maximum sub-modules of one module that a saved mapping is compared with."""


class StateOwner(Struct, frozen=True):
    """A live module, and the mapping of a saved object that has its tensors."""

    module: Any
    at: str
    mapping: Mapping[Any, Any]


def _find_owners(content: SavedContent, states: ModuleStates) -> list[StateOwner]:
    """Return the live module of each mapping of tensors: by identity, else by names and values."""
    from torch import Tensor

    mappings = [
        (place, mapping)
        for place, mapping in content.mappings
        if any(isinstance(value, Tensor) for value in mapping.values())
    ]
    candidates = [
        _OwnerCandidate(
            module, dict(iter_saved_tensors(module)), is_original=not states.is_copy(module)
        )
        for module in _list_candidates(states)
    ]
    owners: list[StateOwner] = []
    for place, mapping in mappings:
        values = {key: value for key, value in mapping.items() if isinstance(value, Tensor)}
        storages = [identify_storage(value) for value in values.values()]
        ranked = [
            ((*rank, candidate.is_original, -len(candidate.tensors)), index)
            for index, candidate in enumerate(candidates)
            if (rank := _rank_owner(values, storages, candidate)) is not None
        ]
        if ranked:
            module = candidates[max(ranked)[1]].module
            owners.append(StateOwner(module, ".".join(place), mapping))
    return owners


class _OwnerCandidate:
    """A live module that a mapping may be of."""

    def __init__(
        self, module: "nn.Module", tensors: "dict[str, Tensor]", *, is_original: bool
    ) -> None:
        self.module = module
        self.tensors = tensors
        self.is_original = is_original
        self.storages = {identify_storage(tensor) for tensor in tensors.values()} - {None}


def _rank_owner(
    values: "Mapping[Any, Tensor]", storages: Sequence[object], candidate: _OwnerCandidate
) -> tuple[int, int, bool] | None:
    """Return how well a mapping fits a module: tensors shared, names equal, a value equal.

    None if it does not: no tensor is the same, and names or shapes differ.

    Args:
        values: the tensors of the mapping.
        storages: the storage of each.
        candidate: the module.
    """
    tensors = candidate.tensors
    shared = sum(storage in candidate.storages for storage in storages)
    named = sum(
        key in tensors and value.shape == tensors[key].shape for key, value in values.items()
    )
    if not tensors or (not shared and named < max(len(tensors), len(values))):
        return None
    return shared, named, has_equal_tensor(values, tensors)


def describe_saved_modules(content: SavedContent, states: ModuleStates) -> tuple[SavedModule, ...]:
    """Describe each live module in a saved object, with what changed and is not in the object."""
    owners = _find_owners(content, states)
    return tuple(_describe_saved_module(owner, content, states) for owner in owners)


def _list_candidates(states: ModuleStates) -> "list[nn.Module]":
    """Return the recorded modules, and of each the sub-modules of the first two levels."""
    from torch import nn

    candidates: dict[int, nn.Module] = {}
    for module in states.list_modules():
        candidates[id(module)] = module
        children = list(nn.Module.children(module))
        grandchildren = [part for child in children for part in nn.Module.children(child)]
        for part in (*children, *grandchildren)[:_MAX_PARTS]:
            candidates.setdefault(id(part), part)
    return list(candidates.values())


def _describe_saved_module(
    owner: StateOwner, content: SavedContent, states: ModuleStates
) -> SavedModule:
    changes, has_baseline = states.find_changed(owner.module)
    changed = tuple(
        unsaved for unsaved, value in changes if not _is_in_content(unsaved, value, content)
    )
    keys = [name for name, _ in iter_saved_tensors(owner.module)]
    left_out = [key for key in keys if key not in owner.mapping]
    if len(left_out) == len(keys):  # all were renamed
        left_out = []
    return SavedModule(
        module=get_written_name(owner.module),
        at=owner.at,
        changed=changed[:MAX_KEYS],
        left_out_keys=tuple(left_out[:MAX_KEYS]),
        left_out_count=len(left_out),
        has_baseline=has_baseline,
    )


def _is_in_content(unsaved: UnsavedValue, value: Any, content: SavedContent) -> bool:
    if unsaved.kind == "value":
        return content.contains_value(unsaved.path.rpartition(".")[2], unsaved.text)
    return content.contains_tensor(value)


def record_trained_modules(states: ModuleStates, objects: TrainingObjects) -> None:
    """Take the modules that are trained for training objects, which have to be in some file.

    That are those with a parameter of a live optimizer, and copies that were changed in place
    since (an average of the weights), alone or as all that another module has.
    """
    from torch import nn

    trained_ids = {
        id(parameter)
        for optimizer in objects.list_objects("optimizer")
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    modules = states.list_modules()
    part_ids = {
        id(part) for module in modules for part in nn.Module.modules(module) if part is not module
    }
    for module in modules:
        if id(module) in part_ids:
            continue
        tensors = [*nn.Module.parameters(module), *nn.Module.buffers(module)]
        is_copy = states.is_copy(module) or _wraps_copy(states, module)
        if any(id(tensor) in trained_ids for tensor in tensors) or (
            is_copy and any(tensor._version for tensor in tensors)  # noqa: SLF001
        ):
            objects.record_object(module, "module copy" if is_copy else "module", "")


def _wraps_copy(states: ModuleStates, module: "nn.Module") -> bool:
    """Whether a copied module is the one child of `module`, as in AveragedModel."""
    children = [child for child in module._modules.values() if child is not None]  # noqa: SLF001
    return len(children) == 1 and not module._parameters and states.is_copy(children[0])  # noqa: SLF001

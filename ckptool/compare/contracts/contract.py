"""ModuleInfo or Checkpoint -> Contract, one entry per key."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from ckptool.compare.left_out_ties import restore_declared_ties, restore_known_ties
from ckptool.compare.states import find_best_state, list_model_states, require_state
from ckptool.errors import UsageError
from ckptool.model import (
    Checkpoint,
    Constancy,
    Kind,
    ModuleInfo,
    ModuleTensor,
    StateDict,
    TensorInfo,
    natural_sort_key,
    tied_keys,
)

_VALUE_CHARS: Final = 16
"""Characters of a fingerprint that a contract has: 64 bits."""


class ContractOrigin(StrEnum):
    """Kind of source of a contract, which decides which fields can be known."""

    MODULE = "module"
    CHECKPOINT = "checkpoint"


class ContractEntry(Struct, frozen=True, kw_only=True):
    """Properties of one key in a contract; None means unknown (not recorded in a file)."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = "strided"
    kind: Kind | None = None
    saved: bool = True
    """Whether the key is in the state_dict."""
    owner: str | None = None
    """Qualified name of the class of the owning module."""
    version: int | None = None
    """`_version` of that class."""
    constancy: Constancy | None = None
    """Whether construction reproduces the value; `mutated` if training changes it.

    None if that is not known, or if a blank value waits for data.
    """
    value: str | None = None
    """Start of the fingerprint of elements that the constructor computes on every machine."""
    tied: str | None = None
    """First key, in natural order, of the tied keys; None if not tied."""
    has_custom_load: bool = False
    """Whether the owner or an ancestor module has a custom load hook; not stored in locks."""

    @property
    def type_description(self) -> str:
        layout = "" if self.layout == "strided" else f" ({self.layout})"
        return f"{self.dtype} {list(self.shape)}{layout}"

    @property
    def tensor_info(self) -> TensorInfo:
        """TensorInfo without storage, for comparisons."""
        return TensorInfo(self.key, self.shape, self.dtype, (), 0, None, self.layout)


class Contract(Struct, frozen=True):
    """State of a release, one entry per key in natural order."""

    name: str
    """Display name: module target, path of the checkpoint or path of the lock file."""
    origin: ContractOrigin
    origin_name: str
    """Module target, or file name of the checkpoint, that the contract was taken from."""
    entries: Mapping[str, ContractEntry]
    non_tensors: Mapping[str, str] = {}
    """Keys of the state_dict that hold no tensor -> short description of the value."""
    arguments: Mapping[str, str] = {}
    """Constructor arguments of the module that the user gave, as Python literals."""

    @property
    def saved_entries(self) -> dict[str, ContractEntry]:
        return {key: entry for key, entry in self.entries.items() if entry.saved}


class FixtureResult(Struct, frozen=True):
    """Result of loading or migrating an old checkpoint into the current module."""

    path: str
    module: str
    route: str
    """"loads strictly", "migrates: STEPS", "migrates by PLAN: STEPS"; "" if none succeeds."""
    reason: str = ""
    """Error text if `route` is "", else ""."""
    missing_keys: tuple[str, ...] = ()
    """Keys that the module expects and the file does not have; the route fills them."""


def build_module_contract(module: ModuleInfo) -> Contract:
    """Return the contract of a module: the keys of its state_dict() and its unsaved tensors."""
    first_tied_keys = _map_to_first_tied_key(
        module_tensor.tensor for module_tensor in module.saved_tensors.values()
    )
    module_tensors = [
        module_tensor
        for module_tensor in module.tensors.values()
        if module_tensor.is_saved or not module_tensor.alias_of
    ]
    entries = (
        _build_module_entry(module_tensor, module, first_tied_keys)
        for module_tensor in module_tensors
    )
    return Contract(
        module.target,
        ContractOrigin.MODULE,
        module.target,
        _sort_entries(entries),
        _sort_non_tensors(module.non_tensors),
        module.arguments,
    )


def build_state_contract(
    checkpoint: Checkpoint, state: StateDict, reference: Contract | None = None
) -> Contract:
    """Return the contract of a state in a file; what the file does not record is None.

    A name that safetensors leaves out since it is tied is an entry, where the file's metadata
    declares the tie or `reference`, the contract to compare with, has it.
    """
    tensors = restore_declared_ties(checkpoint, state.tensors)
    if reference is not None:
        groups = _group_tied_entries(reference)
        tensors = restore_known_ties(checkpoint, tensors, reference.saved_entries, groups)
    first_tied_keys = _map_to_first_tied_key(tensors.values())
    entries = [
        _build_file_entry(tensor, state, first_tied_keys, saved=True) for tensor in tensors.values()
    ]
    entries += [
        _build_file_entry(tensor, state, {}, saved=False)
        for tensor in state.unsaved_tensors.values()
    ]
    return Contract(
        str(checkpoint.path),
        ContractOrigin.CHECKPOINT,
        checkpoint.path.name,
        _sort_entries(entries),
        _sort_non_tensors(state.non_tensors),
    )


def choose_state(
    checkpoint: Checkpoint, at: str | None, reference: Contract | ModuleInfo | None
) -> StateDict:
    """Return the state at `at`, else the one most similar to `reference`, else the only model.

    Raises:
        UsageError: no state fits, or several do.
    """
    if at is not None:
        return require_state(checkpoint, at)
    if isinstance(reference, ModuleInfo):
        return find_best_state(checkpoint, reference)
    model_states = list_model_states(checkpoint)
    if reference is not None and model_states:
        return max(model_states, key=lambda state: _count_matching_entries(state, reference))
    if len(model_states) == 1:
        return model_states[0]
    places = ", ".join(f"`{state.at or '.'}`" for state in model_states)
    problem = (
        f"has several states ({places}): choose one with --at"
        if model_states
        else "contains no model state"
    )
    raise UsageError(f"{checkpoint.path}: {problem}")


def _build_module_entry(
    module_tensor: ModuleTensor, module: ModuleInfo, first_tied_keys: Mapping[str, str]
) -> ContractEntry:
    owner_class = module.modules.get(module_tensor.key.rpartition(".")[0])
    matching_class = (
        owner_class if owner_class is not None and owner_class.name == module_tensor.owner else None
    )
    return ContractEntry(
        key=module_tensor.key,
        shape=module_tensor.tensor.shape,
        dtype=module_tensor.tensor.dtype,
        layout=module_tensor.tensor.layout,
        kind=module_tensor.kind,
        saved=module_tensor.is_saved,
        owner=module_tensor.owner,
        version=matching_class.version if matching_class else None,
        constancy=_recorded_constancy(module_tensor),
        value=_recorded_value(module_tensor),
        tied=first_tied_keys.get(module_tensor.key),
        has_custom_load=_has_custom_load_on_path(module_tensor.key, module),
    )


def _has_custom_load_on_path(key: str, module: ModuleInfo) -> bool:
    """Whether the owner of a key, or one of its ancestors, has a custom load hook."""
    segments = key.split(".")[:-1]
    prefixes = (".".join(segments[:depth]) for depth in range(len(segments) + 1))
    return any(
        prefix in module.modules and module.modules[prefix].has_custom_load for prefix in prefixes
    )


def _recorded_constancy(module_tensor: ModuleTensor) -> Constancy | None:
    """Return the constancy to record.

    None for parameters, which training changes, for unknown, and for a value that is the same on
    every construction and waits for data all the same: constant means that the constructor makes it
    again.
    """
    if module_tensor.kind is Kind.PARAMETER and module_tensor.is_saved:
        return None
    if module_tensor.is_statistic:
        return Constancy.MUTATED
    if module_tensor.constancy is Constancy.CONSTANT and not module_tensor.is_recomputable:
        return None
    return None if module_tensor.constancy is Constancy.UNKNOWN else module_tensor.constancy


def _recorded_value(module_tensor: ModuleTensor) -> str | None:
    is_recorded = module_tensor.is_recomputable and module_tensor.has_integer_values
    return (module_tensor.fingerprint[:_VALUE_CHARS] or None) if is_recorded else None


def _build_file_entry(
    tensor: TensorInfo, state: StateDict, first_tied_keys: Mapping[str, str], *, saved: bool
) -> ContractEntry:
    prefix = tensor.key.rpartition(".")[0]
    pickled_module = state.modules.get(prefix)
    return ContractEntry(
        key=tensor.key,
        shape=tensor.shape,
        dtype=tensor.dtype,
        layout="strided" if tensor.layout == "chunked" else tensor.layout,
        kind=tensor.kind,
        saved=saved,
        owner=pickled_module.name if pickled_module else None,
        version=(state.versions or {}).get(prefix),
        tied=first_tied_keys.get(tensor.key),
    )


def _map_to_first_tied_key(tensors: Iterable[TensorInfo]) -> dict[str, str]:
    groups = [sorted(group, key=natural_sort_key) for group in tied_keys(tensors)]
    return {key: group[0] for group in groups for key in group}


def _group_tied_entries(contract: Contract) -> Iterable[list[str]]:
    groups: dict[str, list[str]] = {}
    for key, entry in contract.saved_entries.items():
        if entry.tied is not None:
            groups.setdefault(entry.tied, []).append(key)
    return groups.values()


def _count_matching_entries(state: StateDict, contract: Contract) -> tuple[int, int]:
    saved = contract.saved_entries
    match_count = sum(k in saved and saved[k].shape == t.shape for k, t in state.tensors.items())
    return match_count, match_count - len(state.tensors)


def _sort_entries(entries: Iterable[ContractEntry]) -> dict[str, ContractEntry]:
    return {
        entry.key: entry for entry in sorted(entries, key=lambda entry: natural_sort_key(entry.key))
    }


def _sort_non_tensors(non_tensors: Mapping[str, str]) -> dict[str, str]:
    return {key: non_tensors[key] for key in sorted(non_tensors, key=natural_sort_key)}

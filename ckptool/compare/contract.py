"""ModuleInfo or Checkpoint -> Contract, one entry per key; two contracts -> ContractDiff."""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from ckptool.compare.changes import (
    COMPARED_FIELDS,
    Change,
    Changed,
    Missing,
    Unexpected,
    breaks_loading,
    iter_changes,
)
from ckptool.compare.left_out_ties import restore_declared_ties, restore_known_ties
from ckptool.compare.remainder_diff import RemainderDiff
from ckptool.compare.rename_search.rename_groups import find_plain_groups, join_pairs
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

_LAZY_LAYOUT: Final = "lazy"
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


class Compatibility(StrEnum):
    """Compatibility of a newer contract with an older one."""

    SAME = "the same"
    COMPATIBLE = "compatible"
    """Code that loads the old state strictly also loads the new one, and vice versa."""
    ADDITIVE = "additive"
    """Nothing was removed; old files can be migrated without a decision by the user."""
    BREAKING = "breaking"


class ContractDiff(Struct, frozen=True):
    """Comparison of an older contract with the current one."""

    old: Contract
    new: Contract
    changes: tuple[Change, ...]
    """Changes between the saved entries, without the keys in `persistence_changed`."""
    persistence_changed: tuple[str, ...]
    """Keys that are saved in one contract and unsaved in the other."""
    renames: Mapping[str, str]
    """Removed key -> added key that is probably the same tensor."""
    removed_non_tensors: tuple[str, ...]
    added_non_tensors: tuple[str, ...]
    migrations_for_added: Mapping[str, str] = {}
    """Key missing in old files -> description of the migration that fills it."""
    remainder: RemainderDiff | None = None
    """What the two files hold besides their tensors; None unless both are files."""
    proved_keys: frozenset[str] = frozenset()
    """Keys of `migrations_for_added` whose migration succeeded on a real old file."""

    @property
    def added_keys(self) -> tuple[str, ...]:
        """Keys missing in old files, without renamed ones."""
        renamed_keys = set(self.renames.values())
        new_keys = [
            c.key for c in self.changes if isinstance(c, Unexpected) and c.key not in renamed_keys
        ]
        return (
            *new_keys,
            *(key for key in self.persistence_changed if self.new.entries[key].saved),
        )

    @property
    def removed_keys(self) -> tuple[str, ...]:
        """Keys of old files that new files do not have."""
        missing_keys = [c.key for c in self.changes if isinstance(c, Missing)]
        return (
            *missing_keys,
            *(key for key in self.persistence_changed if not self.new.entries[key].saved),
        )

    @property
    def reshaped_keys(self) -> tuple[str, ...]:
        """Keys whose shape or layout changed, so that the old tensor does not load."""
        return tuple(c.key for c in self.changes if isinstance(c, Changed) and breaks_loading(c))

    @property
    def changed_constants(self) -> tuple[str, ...]:
        """Keys for which the constructor computes other elements than before."""
        return tuple(
            key
            for key, entry in self.old.entries.items()
            if entry.value
            and (new_entry := self.new.entries.get(key)) is not None
            and (new_entry.shape, new_entry.dtype) == (entry.shape, entry.dtype)
            and new_entry.value not in {None, entry.value}
        )

    @property
    def compatibility(self) -> Compatibility:
        breaking_keys = (
            *self.removed_keys,
            *self.reshaped_keys,
            *self.removed_non_tensors,
            *self.added_non_tensors,
            *(key for key in self.changed_constants if not self.new.entries[key].saved),
        )
        if breaking_keys or any(key not in self.migrations_for_added for key in self.added_keys):
            return Compatibility.BREAKING
        if self.added_keys:
            return Compatibility.ADDITIVE
        is_same_remainder = self.remainder is None or not (
            self.remainder.changed or self.remainder.uncompared
        )
        is_same = is_same_remainder and not any(iter_entry_differences(self.old, self.new))
        return Compatibility.SAME if is_same else Compatibility.COMPATIBLE


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


class EntryDifference(Struct, frozen=True):
    """One difference between two contracts."""

    key: str
    aspect: str
    """"added", "removed", "holds" (another non-tensor value) or a field of `ContractEntry`."""
    old: str
    new: str


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


def compare_contracts(
    old: Contract, new: Contract, proved_migrations: Mapping[str, str] | None = None
) -> ContractDiff:
    """Compare two contracts.

    Args:
        old: the contract of the older release.
        new: the current contract.
        proved_migrations: key -> description of a migration that was run successfully.
    """
    persistence_changed = {
        key
        for key, entry in old.entries.items()
        if key in new.entries and entry.saved != new.entries[key].saved
    }
    old_tensors = {
        k: t.tensor_info for k, t in old.saved_entries.items() if k not in persistence_changed
    }
    new_tensors = {
        k: t.tensor_info for k, t in new.saved_entries.items() if k not in persistence_changed
    }
    changes = tuple(
        c for c in iter_changes(old_tensors, new_tensors, COMPARED_FIELDS) if not _has_lazy_side(c)
    )
    removed_tensors = {c.key: c.expected for c in changes if isinstance(c, Missing)}
    added_tensors = {c.key: c.actual for c in changes if isinstance(c, Unexpected)}
    migrations = proved_migrations or {}
    needed_keys = {*added_tensors} | {k for k in persistence_changed if new.entries[k].saved}
    automatic_migrations = {
        key: route
        for key in needed_keys
        if (route := _describe_automatic_migration(new.entries[key]))
    }
    return ContractDiff(
        old=old,
        new=new,
        changes=changes,
        persistence_changed=tuple(key for key in old.entries if key in persistence_changed),
        renames=join_pairs(find_plain_groups(removed_tensors, added_tensors)),
        removed_non_tensors=tuple(k for k in old.non_tensors if k not in new.non_tensors),
        added_non_tensors=tuple(k for k in new.non_tensors if k not in old.non_tensors),
        migrations_for_added={
            **automatic_migrations,
            **{key: route for key, route in migrations.items() if key in needed_keys},
        },
        proved_keys=frozenset(needed_keys & migrations.keys()),
    )


def iter_entry_differences(
    old: Contract, new: Contract, *, exact: bool = False
) -> Iterator[EntryDifference]:
    """Yield the differences between two contracts, by key in natural order.

    A field that is unknown in one contract is ignored, unless `exact` is set.
    """
    for key in sorted({*old.entries, *new.entries}, key=natural_sort_key):
        old_entry, new_entry = old.entries.get(key), new.entries.get(key)
        if old_entry is None or new_entry is None:
            yield from _describe_one_sided(key, old_entry, new_entry)
        else:
            yield from _compare_fields(old_entry, new_entry, exact=exact)
    yield from _compare_non_tensors(old.non_tensors, new.non_tensors, exact=exact)


def _compare_fields(
    old: ContractEntry, new: ContractEntry, *, exact: bool
) -> Iterator[EntryDifference]:
    for name in ("shape", "dtype", "layout", *_OPTIONAL_FIELDS):
        old_value, new_value = getattr(old, name), getattr(new, name)
        is_unknown = not exact and name != "tied" and (old_value is None or new_value is None)
        if old_value != new_value and not is_unknown:
            yield EntryDifference(old.key, name, _format_field(old_value), _format_field(new_value))


def _compare_non_tensors(
    old: Mapping[str, str], new: Mapping[str, str], *, exact: bool
) -> Iterator[EntryDifference]:
    for key in sorted({*old, *new}, key=natural_sort_key):
        old_text, new_text = old.get(key), new.get(key)
        if old_text is None or new_text is None:
            yield EntryDifference(
                key, "added" if old_text is None else "removed", old_text or "", new_text or ""
            )
        elif exact and old_text != new_text:
            yield EntryDifference(key, "holds", old_text, new_text)


_OPTIONAL_FIELDS: Final = ("kind", "saved", "owner", "version", "constancy", "value", "tied")


def _describe_one_sided(
    key: str, old: ContractEntry | None, new: ContractEntry | None
) -> Iterator[EntryDifference]:
    if old is None and new is not None:
        yield EntryDifference(key, "added", "", _describe_entry(new))
    elif old is not None:
        yield EntryDifference(key, "removed", _describe_entry(old), "")


def _describe_entry(entry: ContractEntry) -> str:
    kind = f"{entry.kind} " if entry.kind else ""
    return f"{kind}{entry.type_description}{'' if entry.saved else ', not saved'}"


def _format_field(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(list(value)) if isinstance(value, tuple) else str(value or "-")


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


def _describe_automatic_migration(entry: ContractEntry) -> str:
    """Return how a key missing in old files is filled; "" if that needs a user's decision."""
    if entry.has_custom_load:
        return "a load hook of the module may provide it"
    if entry.kind is Kind.BUFFER and entry.constancy is Constancy.CONSTANT:
        return "`ckptool migrate` adds the value that the constructor computes"
    return ""


def _has_lazy_side(change: Change) -> bool:
    """Whether one side is a lazy parameter, whose shape is unknown before the first input."""
    if not isinstance(change, Changed):
        return False
    return _LAZY_LAYOUT in {change.expected.layout, change.actual.layout}


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

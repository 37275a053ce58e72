"""Two contracts -> ContractDiff, and the differences entry by entry."""

from collections.abc import Iterator, Mapping
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
from ckptool.compare.contracts.contract import Contract, ContractEntry
from ckptool.compare.remainder_diff import RemainderDiff
from ckptool.compare.rename_search.rename_groups import join_pairs
from ckptool.compare.rename_search.search import find_plain_groups
from ckptool.model import Constancy, Kind, natural_sort_key


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


class EntryDifference(Struct, frozen=True):
    """One difference between two contracts."""

    key: str
    aspect: str
    """"added", "removed", "holds" (another non-tensor value) or a field of `ContractEntry`."""
    old: str
    new: str


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
    return "lazy" in {change.expected.layout, change.actual.layout}

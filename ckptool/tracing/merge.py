"""Records of all processes -> RunTrace: the same call of several ranks and epochs together."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.tracing.records import (
    AnyRecord,
    LoadRecord,
    ProcessEndRecord,
    ProcessRecord,
    SavedModule,
    SaveRecord,
    TrainingObject,
    UncheckedRecord,
    UnsavedValue,
)

T = TypeVar("T")


class LoadSite(Struct, frozen=True):
    """Loads that are the same but for their rank and time."""

    record: LoadRecord
    count: int
    ends_process: bool | None = False
    """Whether the error of the load ended its process; None if that is not known."""


class SaveSite(Struct, frozen=True):
    """Saves by one line of the script of the same modules."""

    record: SaveRecord
    """The last of them; changes are those of all."""
    files: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.files)


class ObjectSummary(Struct, frozen=True):
    """What of the training objects is in the files of a run."""

    never_saved: tuple[TrainingObject, ...]
    saved_kinds: frozenset[str]
    files: tuple[str, ...]


class RunTrace(Struct, frozen=True):
    """What the loads and saves of a command did."""

    loads: tuple[LoadSite, ...]
    saves: tuple[SaveSite, ...]
    objects: ObjectSummary
    unchecked: tuple[UncheckedRecord, ...]
    processes: tuple[ProcessRecord, ...]


def merge_records(records: Iterable[AnyRecord]) -> RunTrace:
    """Merge the records of a command, each process's in its order."""
    record_list = list(records)
    saves = [record for record in record_list if isinstance(record, SaveRecord)]
    unchecked = [record for record in record_list if isinstance(record, UncheckedRecord)]
    return RunTrace(
        loads=_merge_loads(record_list),
        saves=_merge_saves(saves),
        objects=_summarize_objects(saves),
        unchecked=tuple(_drop_duplicates(unchecked)),
        processes=tuple(record for record in record_list if isinstance(record, ProcessRecord)),
    )


def _forget_process(record: T) -> T:
    return replace(record, rank=0, process=0)  # type: ignore[type-var]


def _drop_duplicates(records: Iterable[T]) -> list[T]:
    unique: list[T] = []
    for record in map(_forget_process, records):
        if record not in unique:
            unique.append(record)
    return unique


def _merge_loads(records: Sequence[AnyRecord]) -> tuple[LoadSite, ...]:
    sites: dict[tuple[object, ...], LoadSite] = {}
    loads = [record for record in records if isinstance(record, LoadRecord)]
    for record in sorted(loads, key=lambda load: load.rank):
        key = (
            *(record.where, record.module, record.file, record.at, record.error, record.is_strict),
            *(record.missing_keys, record.unexpected_keys, record.mismatches),
            tuple(unsaved.path for unsaved in record.unsaved),
        )
        site = sites.get(key)
        sites[key] = (
            LoadSite(record, 1, _ends_process(record, records))
            if site is None
            else replace(site, count=site.count + 1)
        )
    return tuple(sites.values())


def _ends_process(record: LoadRecord, records: Sequence[AnyRecord]) -> bool | None:
    """Return whether the error of a load ended its process, by what the process recorded later."""
    if not record.error:
        return False
    process_records = [other for other in records if other.process == record.process]
    later = process_records[process_records.index(record) + 1 :]
    ends = [other for other in later if isinstance(other, ProcessEndRecord)]
    if ends:
        return any(record.error in error for error in ends[-1].errors)
    return False if later else None


def _merge_saves(saves: Sequence[SaveRecord]) -> tuple[SaveSite, ...]:
    groups: dict[tuple[object, ...], list[SaveRecord]] = {}
    for record in saves:
        key = (
            *(record.where, record.saver, record.error),
            tuple((module.module, module.at) for module in record.modules),
            tuple((item.kind, item.owner) for item in record.saved_objects),
        )
        groups.setdefault(key, []).append(record)
    return tuple(_join_saves(group) for group in groups.values())


def _join_saves(records: Sequence[SaveRecord]) -> SaveSite:
    last = records[-1]
    modules = tuple(
        _join_modules([record.modules[index] for record in records])
        for index in range(len(last.modules))
    )
    files = dict.fromkeys(record.file for record in records)
    return SaveSite(replace(last, modules=modules), tuple(files))


def _join_modules(modules: Sequence[SavedModule]) -> SavedModule:
    changed: dict[tuple[str, str], UnsavedValue] = {}
    for module in modules:
        changed |= {(unsaved.path, unsaved.kind): unsaved for unsaved in module.changed}
    return replace(modules[-1], changed=tuple(changed.values()))


def _summarize_objects(saves: Sequence[SaveRecord]) -> ObjectSummary:
    saved = {(save.process, item.number): item for save in saves for item in save.saved_objects}
    never: dict[tuple[str, str, str, str], TrainingObject] = {}
    for save in saves:
        for item in save.unsaved_objects:
            if (save.process, item.number) not in saved:
                never.setdefault((item.kind, item.owner, item.where, item.name), item)
    return ObjectSummary(
        tuple(never.values()),
        frozenset(item.kind for item in saved.values()),
        tuple(dict.fromkeys(save.file for save in saves)),
    )

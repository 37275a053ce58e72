"""Plain values of two files -> EntryChangeReport: `epoch: 3 -> 4`, at the innermost place."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from msgspec import Struct

from ckptool.model import Checkpoint, PlainEntry, join_key
from ckptool.phrases import format_literal, truncate

_ABSENT: Final = "-"
_MAX_CHANGES: Final = 200
"""Changes that are named; the places of all are in `changed_entries`."""
_MAX_VALUE_CHARS: Final = 60


class EntryChangeReport(Struct, frozen=True, kw_only=True):
    """A plain value that differs between two files."""

    place: str
    old: str
    """Short text of the value in the old file; "-" if it is not there."""
    new: str


def build_entry_changes(
    old: Checkpoint, new: Checkpoint, places: Sequence[str], moved: tuple[str, str]
) -> tuple[EntryChangeReport, ...]:
    """Build the changes at `places` of the old file, those of dicts for each key that differs.

    Args:
        old: the old file.
        new: the new file.
        places: where plain data differs.
        moved: places of the compared states in (old, new): what lies within may have moved along.
    """
    old_entries = {entry.at: entry for entry in old.entries}
    new_entries = {entry.at: entry for entry in new.entries}
    changes = (
        change
        for place in places
        for change in _iter_changes(
            place,
            old_entries.get(place),
            new_entries.get(place) or new_entries.get(_move_place(place, moved)),
        )
    )
    return tuple(islice(changes, _MAX_CHANGES))


def _move_place(place: str, moved: tuple[str, str]) -> str:
    prefix = f"{moved[0]}." if moved[0] else ""
    return join_key(moved[1], place.removeprefix(prefix)) if place.startswith(prefix) else place


def _iter_changes(
    place: str, old: PlainEntry | None, new: PlainEntry | None
) -> Iterator[EntryChangeReport]:
    if old is None and new is None:
        return
    if old is not None and new is not None and _are_dicts(old.value, new.value):
        yield from _iter_dict_changes(place, old.value, new.value)  # type: ignore[arg-type]
        return
    texts = (old.text if old else _ABSENT, new.text if new else _ABSENT)
    yield EntryChangeReport(place=place, old=texts[0], new=texts[1])


def _iter_dict_changes(
    place: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[EntryChangeReport]:
    for key in dict.fromkeys((*old, *new)):
        inner_place = join_key(place, key)
        if key in old and key in new and _are_dicts(old[key], new[key]):
            yield from _iter_dict_changes(inner_place, old[key], new[key])
        elif key not in old or key not in new or repr(old[key]) != repr(new[key]):
            yield EntryChangeReport(
                place=inner_place, old=_format_value(old, key), new=_format_value(new, key)
            )


def _are_dicts(old: object, new: object) -> bool:
    return isinstance(old, dict) and isinstance(new, dict)


def _format_value(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return _ABSENT
    return truncate(format_literal(values[key]), _MAX_VALUE_CHARS)

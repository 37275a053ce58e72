"""Names of an archive's members -> why torch.load refuses it: packed again by another program."""

from collections.abc import Iterable
from typing import Final

from ckptool.formats.pickle.plain_values import quote_name

_OLDEST_VERSION, _NEWEST_VERSION = 1, 10
"""Versions of the archive that torch's reader accepts."""
_VERSION_RECORDS: Final = (".data/version", "version")


def find_refusal(names: Iterable[str], first_name: str, version: str, main_record: str) -> str:
    """Return why torch's reader refuses the archive; "" if it opens it.

    The reader takes the folder of the first member for the archive's, and all others must be in it.

    Args:
        names: of all members, folders too.
        first_name: of the member that is the first in the directory.
        version: content of the version record, "" without one.
        main_record: name of the record that the archive has to have.
    """
    folder, slash, _ = first_name.partition("/")
    if not slash:
        return f"{quote_name(first_name)} is not in a folder"
    known_names = {name.casefold() for name in names if name.startswith(f"{folder}/")}
    if not any(f"{folder}/{record}".casefold() in known_names for record in _VERSION_RECORDS):
        return f"there is no record `version` in {quote_name(f'{folder}/')}"
    is_number = version.isascii() and version.isdigit()
    if not is_number or not _OLDEST_VERSION <= int(version[:20]) <= _NEWEST_VERSION:
        return f"its version record is {quote_name(version)}; torch reads 1 to {_NEWEST_VERSION}"
    stray_name = next((name for name in names if not name.startswith(f"{folder}/")), None)
    if stray_name is not None:
        return f"{quote_name(stray_name)} is not in {quote_name(f'{folder}/')}"
    if f"{folder}/{main_record}".casefold() not in known_names:
        return f"there is no {main_record} in {quote_name(f'{folder}/')}"
    return ""

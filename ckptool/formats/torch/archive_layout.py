"""Names of an archive's members -> why torch.load refuses it: packed again by another program."""

from typing import Final

from ckptool.formats.pickle.plain_values import quote_name
from ckptool.formats.zip.directory import ZipMember, ZipMembers

_OLDEST_VERSION, _NEWEST_VERSION = 1, 10
"""Versions of the archive that torch's reader accepts."""
_VERSION_RECORDS: Final = (".data/version", "version")


_MAX_NAME_BYTES: Final = 511
"""Bytes of a member's name that torch's reader takes; it cuts off the rest."""


def fold_case(name: str) -> str:
    """Return the name as torch's reader compares it: only A to Z are made a to z."""
    return name.lower() if name.isascii() else name.encode().lower().decode()


def fold_names(names: list[str]) -> list[str]:
    """Return `fold_case` of each name: the same list if it changes none, as in torch's archives."""
    joined_names = "\n".join(names)
    if joined_names.isascii():
        return names if joined_names.lower() == joined_names else [*map(str.lower, names)]
    return [*map(fold_case, names)]


def find_refusal(archive: ZipMembers, version: str, main_record: str) -> str:
    """Return why torch's reader refuses the archive; "" if it opens it.

    The reader takes the folder of the first member for the archive's, and all others must be in it.

    Args:
        archive: with all members, folders too.
        version: content of the version record, "" without one.
        main_record: name of the record that the archive has to have.
    """
    if reason := _find_name_refusal(archive):
        return reason
    folder = archive.first_name.partition("/")[0]
    root = f"{folder}/"
    names = [name for name in archive.names if name.startswith(root)]
    known_names = names if archive.has_plain_names else fold_names(names)
    if not any(fold_case(f"{folder}/{record}") in known_names for record in _VERSION_RECORDS):
        return f"there is no record `version` in {quote_name(f'{folder}/')}"
    is_number = version.isascii() and version.isdigit()
    if not is_number or not _OLDEST_VERSION <= int(version[:20]) <= _NEWEST_VERSION:
        return f"its version record is {quote_name(version)}; torch reads 1 to {_NEWEST_VERSION}"
    if len(names) < len(archive.names):
        stray_name = next(name for name in archive.names if not name.startswith(root))
        return f"{quote_name(stray_name)} is not in {quote_name(f'{folder}/')}"
    if fold_case(f"{folder}/{main_record}") not in known_names:
        return f"there is no {main_record} in {quote_name(f'{folder}/')}"
    return ""


def _find_name_refusal(archive: ZipMembers) -> str:
    """Return what torch cannot make of a name: its folder, or text; "" if nothing."""
    folder, slash, _ = archive.first_name.partition("/")
    if not slash:
        return f"{quote_name(archive.first_name)} is not in a folder"
    if len(folder.encode()) >= _MAX_NAME_BYTES:
        return f"its folder has a name of more than {_MAX_NAME_BYTES - 1} bytes"
    if archive.has_plain_names and max(map(len, archive.names)) < _MAX_NAME_BYTES:
        return ""
    bad_name = next(
        (
            member.name
            for member in archive.members
            if (member.encoding != "utf-8" or len(member.name) > _MAX_NAME_BYTES // 4)
            and not _is_text_for_torch(member)
        ),
        "",
    )
    return f"the name {quote_name(bad_name)} is not UTF-8 as torch reads it" if bad_name else ""


def _is_text_for_torch(member: ZipMember) -> bool:
    if member.encoding != "utf-8":
        return False
    try:
        member.encoded_name[:_MAX_NAME_BYTES].decode()
    except UnicodeDecodeError:
        return False
    return True

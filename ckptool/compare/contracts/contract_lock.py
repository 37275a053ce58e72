"""Contract <-> text of a lock file: JSON, one key per line, in natural order."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Struct, field

from ckptool.compare.contracts.contract import Contract, ContractEntry, ContractOrigin
from ckptool.decode_errors import find_unknown_field, locate_problem, split_decode_error
from ckptool.errors import CorruptCheckpointError, ReadError, describe_os_error
from ckptool.locations import read_small_file
from ckptool.model import Constancy, Kind, natural_sort_key

FORMAT_VERSION: Final = 1
_FORMAT_KEY: Final = "ckptool-lock"
_HEAD_NBYTES: Final = 4096
MAX_NBYTES: Final = 256 << 20
"""Maximum size of a lock file, which has about 200 bytes per key."""


class _LockEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """Value of one key in a lock file."""

    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    dtype: str
    kind: Kind | None
    saved: bool
    owner: str | None
    version: int | None
    constancy: Constancy | None
    tied: str | None
    layout: str = "strided"
    value: str | None = None


class _LockFile(Struct, frozen=True, forbid_unknown_fields=True):
    """Top-level object of a lock file."""

    format: int = field(name=_FORMAT_KEY)
    source: ContractOrigin
    name: str
    """Module target, or file name of the checkpoint."""
    keys: dict[str, Any]
    others: dict[str, str]


def format_lock(contract: Contract) -> str:
    """Return the text of the lock file; deterministic."""
    entries = {key: _format_entry(entry) for key, entry in contract.entries.items()}
    non_tensors = {key: _quote_json(text) for key, text in contract.non_tensors.items()}
    fields = (
        f"{_quote_json(_FORMAT_KEY)}: {FORMAT_VERSION}",
        f'"source": {_quote_json(contract.origin)}',
        f'"name": {_quote_json(contract.origin_name)}',
        f'"keys": {_format_block(entries)}',
        f'"others": {_format_block(non_tensors)}',
    )
    return "{\n" + ",\n".join(f"  {line}" for line in fields) + "\n}\n"


def is_lock(path: Path) -> bool:
    """Whether the start of the file looks like a lock; False if it cannot be read."""
    if not path.is_file():  # opening a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            start = file.read(_HEAD_NBYTES)
    except OSError:
        return False
    return start.lstrip().startswith(b"{") and f'"{_FORMAT_KEY}"'.encode() in start


def read_lock(path: Path) -> Contract:
    """Return the contract in a lock file.

    Raises:
        ReadError: it cannot be read.
        CorruptCheckpointError: it is no valid lock, or larger than MAX_NBYTES; the message locates
            the error.
    """
    try:
        if path.stat().st_size > MAX_NBYTES:
            raise CorruptCheckpointError(path, f"is larger than any lock ({MAX_NBYTES >> 20} MiB)")
        text = read_small_file(path)
    except OSError as error:
        raise ReadError(path, describe_os_error(error)) from error
    return parse_lock(text, path)


def parse_lock(text: bytes, path: Path) -> Contract:
    """Return the contract in the text of a lock file; `path` is used in error messages.

    Raises:
        CorruptCheckpointError: it is no valid lock.
    """
    try:
        data = json.loads(text, object_pairs_hook=_reject_duplicate_keys)
        _check_format(data, path)
        lock_file = msgspec.convert(data, _LockFile)
        entries = {
            key: ContractEntry(key=key, **msgspec.structs.asdict(_convert_entry(key, line)))
            for key, line in lock_file.keys.items()
        }
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(
            path, f"is not a lock: {_describe_decode_error(error)}"
        ) from error
    return Contract(
        str(path),
        lock_file.source,
        lock_file.name,
        {key: entries[key] for key in sorted(entries, key=natural_sort_key)},
        {key: lock_file.others[key] for key in sorted(lock_file.others, key=natural_sort_key)},
    )


def _check_format(data: object, path: Path) -> None:
    if not isinstance(data, dict) or _FORMAT_KEY not in data:
        raise CorruptCheckpointError(
            path, f"is not a lock: expected an object with {_FORMAT_KEY!r}"
        )
    if data[_FORMAT_KEY] != FORMAT_VERSION:
        format_text = json.dumps(data[_FORMAT_KEY])[:40]
        raise CorruptCheckpointError(
            path,
            f"is a lock of format {format_text}, but this version reads format {FORMAT_VERSION}: "
            "create it again with `ckptool lock`",
        )


def _reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs as a dict; ValueError for a duplicate key, on which parsers differ."""
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} appears twice")
        result[key] = value
    return result


def _convert_entry(key: str, line: object) -> _LockEntry:
    """Convert the value of one key; errors contain the key, for which msgspec writes `[...]`."""
    try:
        return msgspec.convert(line, _LockEntry)
    except msgspec.ValidationError as error:
        problem, path = split_decode_error(str(error))
        raise ValueError(locate_problem(problem, f".keys[{json.dumps(key)}]{path}")) from error


def _describe_decode_error(error: Exception) -> str:
    """Return the error in one sentence; for an unknown field, with a suggestion."""
    text = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
    unknown_field = find_unknown_field(text)
    if unknown_field is None:
        return text
    known_fields = [
        f.encode_name for t in (_LockFile, _LockEntry) for f in msgspec.structs.fields(t)
    ]
    close = get_close_matches(unknown_field.name, known_fields, n=1)
    suggestion = f"did you mean `{close[0]}`?" if close else "a newer ckptool may have written it"
    problem = f"unknown field `{unknown_field.name}`"
    return f"{locate_problem(problem, unknown_field.path)}; {suggestion}"


def _format_entry(entry: ContractEntry) -> str:
    fields: dict[str, object] = {
        "shape": list(entry.shape),
        "dtype": entry.dtype,
        **({} if entry.layout == "strided" else {"layout": entry.layout}),
        "kind": entry.kind,
        "saved": entry.saved,
        "owner": entry.owner,
        "version": entry.version,
        "constancy": entry.constancy,
        **({} if entry.value is None else {"value": entry.value}),
        "tied": entry.tied,
    }
    return json.dumps(fields)


def _format_block(lines: Mapping[str, str]) -> str:
    if not lines:
        return "{}"
    body = ",\n".join(f"    {_quote_json(key)}: {line}" for key, line in lines.items())
    return "{\n" + body + "\n  }"


def _quote_json(text: str) -> str:
    return json.dumps(text)

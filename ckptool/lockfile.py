"""Contract <-> text of a lock file: JSON, one key per line, in natural order."""

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Struct, field

from ckptool.contract import Contract, Source, Term
from ckptool.errors import CorruptCheckpointError, ReadError
from ckptool.model import Constancy, Kind, natural

FORMAT: Final = 1
_MARK: Final = "ckptool-lock"
_LOOKED_AT: Final = 4096
MOST_BYTES: Final = 256 << 20
"""Maximum size of a lock file, which has about 200 bytes per key."""


class _Line(Struct, frozen=True, forbid_unknown_fields=True):
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


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """Top-level object of a lock file."""

    format: int = field(name=_MARK)
    source: Source
    name: str
    """Module target, or file name of the checkpoint."""
    keys: dict[str, Any]
    others: dict[str, str]


def write(contract: Contract) -> str:
    """Return the text of the lock file; deterministic."""
    head = (
        f"{_string(_MARK)}: {FORMAT}",
        f'"source": {_string(contract.source)}',
        f'"name": {_string(contract.taken_from)}',
        f'"keys": {_block({key: _line(term) for key, term in contract.terms.items()})}',
        f'"others": {_block({key: _string(text) for key, text in contract.others.items()})}',
    )
    return "{\n" + ",\n".join(f"  {line}" for line in head) + "\n}\n"


def is_lock(path: Path) -> bool:
    """Whether the start of the file looks like a lock; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
    except OSError:
        return False
    return start.lstrip().startswith(b"{") and f'"{_MARK}"'.encode() in start


def read(path: Path) -> Contract:
    """Return the contract in a lock file.

    Raises:
        ReadError: it cannot be read.
        CorruptCheckpointError: it is no valid lock, or larger than MAX_NBYTES; the message locates
            the error.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise CorruptCheckpointError(path, f"is larger than any lock ({MOST_BYTES >> 20} MiB)")
        text = path.read_bytes()
    except OSError as error:
        raise ReadError(path, error.strerror or str(error)) from error
    return decode(text, path)


def decode(text: bytes, path: Path) -> Contract:
    """Return the contract in the text of a lock file; `path` is used in error messages.

    Raises:
        CorruptCheckpointError: it is no valid lock.
    """
    try:
        plain = json.loads(text, object_pairs_hook=_once)
        _check_format(plain, path)
        file = msgspec.convert(plain, _File)
        terms = {key: _term(key, _decoded(key, line)) for key, line in file.keys.items()}
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(path, f"is no lock: {_explained(error)}") from error
    return Contract(
        str(path),
        file.source,
        file.name,
        {key: terms[key] for key in sorted(terms, key=natural)},
        {key: file.others[key] for key in sorted(file.others, key=natural)},
    )


def _check_format(plain: object, path: Path) -> None:
    if not isinstance(plain, dict) or _MARK not in plain:
        raise CorruptCheckpointError(path, f"is no lock: expected an object with {_MARK!r}")
    if plain[_MARK] != FORMAT:
        found = json.dumps(plain[_MARK])[:40]
        raise CorruptCheckpointError(
            path,
            f"is a lock of format {found}, and this version reads format {FORMAT}: "
            "write it anew with `ckptool lock`",
        )


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs as a dict; ValueError for a duplicate key, on which parsers differ."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands there twice")
        found[key] = value
    return found


def _decoded(key: str, line: object) -> _Line:
    """Convert the value of one key; errors contain the key, for which msgspec writes `[...]`."""
    try:
        return msgspec.convert(line, _Line)
    except msgspec.ValidationError as error:
        text, at, place = str(error).rpartition(" - at `$")
        where = f" - at `$.keys[{json.dumps(key)}]"
        raise ValueError(f"{text}{where}{place}" if at else f"{error}{where}`") from error


def _explained(error: Exception) -> str:
    """Return the error in one sentence; for an unknown field, with a suggestion."""
    text = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
    unknown = re.match(r"Object contains unknown field `(.*?)`(.*)", text)
    if unknown is None:
        return text
    known = [f.encode_name for t in (_File, _Line) for f in msgspec.structs.fields(t)]
    close = get_close_matches(unknown[1], known, n=1)
    meant = f"did you mean `{close[0]}`?" if close else "a newer ckptool may have written it"
    return f"unknown field `{unknown[1]}`{unknown[2]}; {meant}"


def _term(key: str, line: _Line) -> Term:
    return Term(
        key=key,
        shape=line.shape,
        dtype=line.dtype,
        layout=line.layout,
        kind=line.kind,
        saved=line.saved,
        owner=line.owner,
        version=line.version,
        constancy=line.constancy,
        tied=line.tied,
    )


def _line(term: Term) -> str:
    fields: dict[str, object] = {
        "shape": list(term.shape),
        "dtype": term.dtype,
        **({} if term.layout == "strided" else {"layout": term.layout}),
        "kind": term.kind,
        "saved": term.saved,
        "owner": term.owner,
        "version": term.version,
        "constancy": term.constancy,
        "tied": term.tied,
    }
    return json.dumps(fields)


def _block(lines: Mapping[str, str]) -> str:
    if not lines:
        return "{}"
    inside = ",\n".join(f"    {_string(key)}: {line}" for key, line in lines.items())
    return "{\n" + inside + "\n  }"


def _string(text: str) -> str:
    return json.dumps(text)

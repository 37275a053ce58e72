"""StructuralDiff -> DiffShards (`diff --shard I/N`) -> CheckpointDiff: split and merge a diff."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare import Revision
from ckptool.errors import UsageError
from ckptool.formats.files import open_source
from ckptool.locations import Location, RemotePath, locate
from ckptool.model import Checkpoint, TensorInfo
from ckptool.revising import (
    Answers,
    Outline,
    Question,
    outlined,
    questions,
    revise,
    together,
    unanswered,
    weight,
)
from ckptool.statistics import Tolerances

_SAMPLES: Final = 64
_SAMPLE: Final = 4096


class Side(Struct, frozen=True):
    """One of the two compared files, as stored in a DiffShard."""

    path: str
    identity: str
    """SHA-256 (hex) of the names, sizes and samples of the bytes of its files."""
    checkpoint: Checkpoint
    """Without states, entries, globals, metadata, files and faults."""
    tensors: Mapping[str, TensorInfo]


class Part(Struct, frozen=True):
    """Result of one shard: the structure of both files, and value results of its checks."""

    number: int
    of: int
    old: Side
    new: Side
    places: tuple[str, str]
    entries: tuple[str, ...]
    tolerances: Tolerances | None
    answers: Answers


def share(known: Outline, number: int, of: int) -> tuple[Question, ...]:
    """Return the value checks of shard `number` (1 to `shard_count`), balanced by bytes read."""
    asked = questions(known)
    heaviest_first = sorted(range(len(asked)), key=lambda n: -weight(known, asked[n]))
    loads = [0] * of
    mine: list[int] = []
    for n in heaviest_first:
        least = loads.index(min(loads))
        loads[least] += weight(known, asked[n]) + 1
        if least == number - 1:
            mine.append(n)
    return tuple(asked[n] for n in sorted(mine))


def part_of(
    known: Outline, number: int, of: int, tolerances: Tolerances | None, answers: Answers
) -> Part:
    """Return the serializable result of one shard: the input of `merge_shards`."""
    return Part(
        number=number,
        of=of,
        old=_side(known.old, known.old_tensors),
        new=_side(known.new, known.new_tensors),
        places=known.places,
        entries=known.entries,
        tolerances=tolerances,
        answers=answers,
    )


def merged(parts: Mapping[str, Part]) -> Revision:
    """Merge all shards, given by file name, into the CheckpointDiff.

    Raises:
        UsageError: a shard is missing or duplicate, or the files or options differ between shards.
    """
    named = list(parts.items())
    name, first = named[0]
    for other, part in named[1:]:
        _check_same(name, first, other, part)
    _check_whole(named)
    learnt = together(part.answers for _, part in named)
    known = outlined(
        _checkpoint(first.old),
        _checkpoint(first.new),
        first.places,
        first.old.tensors,
        first.new.tensors,
        first.entries,
    )
    if key := unanswered(known, learnt):
        raise UsageError(f"{name}: no part looked at {key!r}: other versions of ckptool made them")
    return revise(known, learnt, first.tolerances)


def to_data(part: Part) -> Mapping[str, Any]:
    """Return a shard as plain data; Path values in it are reduced to file names."""
    data: Mapping[str, Any] = msgspec.to_builtins(part, enc_hook=_encoded)
    return data


def from_data(name: str, data: object) -> Part:
    """Return the shard in the data of a report; `name` is the report's file, for messages.

    Raises:
        UsageError: the data is no shard.
    """
    try:
        return msgspec.convert(data, Part, dec_hook=_decoded)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{name}: is no part that `ckptool diff --shard I/N --format json` wrote: {error}"
        ) from error


def _side(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> Side:
    bare = replace(checkpoint, states=(), entries=(), globals=(), metadata={}, files=(), faults=())
    files = checkpoint.files or (checkpoint.path,)
    return Side(str(checkpoint.path), _identity(files), bare, dict(tensors))


def _checkpoint(side: Side) -> Checkpoint:
    return replace(side.checkpoint, path=locate(side.path))


def _identity(files: Sequence[Location]) -> str:
    from hashlib import sha256  # imported lazily: it starts OpenSSL

    digest = sha256()
    for path in files:
        with open_source(path) as source:
            digest.update(f"{path.name} {source.nbytes}\n".encode("utf-8", "surrogateescape"))
            last = max(0, source.nbytes - _SAMPLE)
            for offset in sorted({last * n // (_SAMPLES - 1) for n in range(_SAMPLES)}):
                digest.update(source.read(offset, min(_SAMPLE, source.nbytes - offset)))
    return digest.hexdigest()


def _check_same(name: str, first: Part, other: str, part: Part) -> None:
    for side, one, two in (("OLD", first.old, part.old), ("NEW", first.new, part.new)):
        if (one.identity, one.tensors) != (two.identity, two.tensors):
            raise UsageError(f"{other}: its {side} ({two.path}) is not that of {name} ({one.path})")
    for what, one_setting, other_setting in (
        ("N of --shard I/N", first.of, part.of),
        ("--at", first.places, part.places),
        ("--rtol and --atol", first.tolerances, part.tolerances),
    ):
        if one_setting != other_setting:
            raise UsageError(f"{other}: was made with another {what} than {name}")


def _check_whole(named: Sequence[tuple[str, Part]]) -> None:
    of = named[0][1].of
    seen: dict[int, str] = {}
    for name, part in named:
        if not 1 <= part.number <= of:
            raise UsageError(f"{name}: says that it is part {part.number} of {of}")
        if part.number in seen:
            raise UsageError(f"{name}: is part {part.number}, as {seen[part.number]} is")
        seen[part.number] = name
    if len(seen) < of:
        lost = list(_missing(seen, of))
        more = f" and {of - len(seen) - len(lost)} more" if of - len(seen) > len(lost) else ""
        raise UsageError(
            f"{of - len(seen)} of {of} parts are missing: {', '.join(lost)}{more}. Make them with "
            "`ckptool diff OLD NEW --shard I/N --format json -o FILE`"
        )


def _missing(seen: Mapping[int, str], of: int) -> Iterator[str]:
    found = 0
    for number in range(1, of + 1):
        if number not in seen and found < 5:
            found += 1
            yield f"{number}/{of}"
        if found == 5:
            return


def _encoded(value: object) -> object:
    if isinstance(value, Path | RemotePath):
        return value.name
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError


def _decoded(kind: type, value: object) -> object:
    if cast("object", kind) is Location and isinstance(value, str):
        return Path(value)
    raise NotImplementedError

"""StructuralDiff -> DiffShards (`diff --shard I/N`) -> CheckpointDiff: split and merge a diff."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.checkpoint_diff import CheckpointDiff, build_checkpoint_diff
from ckptool.compare.remainder_diff import RemainderDiff
from ckptool.compare.structural_diff import StructuralDiff, compare_tensors_structure
from ckptool.compare.value_checks import (
    ValueCheck,
    ValueResults,
    count_read_nbytes,
    first_unchecked_key,
    merge_value_results,
    plan_value_checks,
)
from ckptool.errors import UsageError
from ckptool.formats.files.source import open_source
from ckptool.locations import Location, RemotePath, parse_location
from ckptool.model import Checkpoint, StateDict, TensorInfo
from ckptool.values.difference import Tolerances

_SAMPLE_COUNT: Final = 64
_SAMPLE_NBYTES: Final = 4096


class ShardInput(Struct, frozen=True):
    """One of the two compared files, as stored in a DiffShard."""

    path: str
    identity: str
    """SHA-256 (hex) of the names, sizes and samples of the bytes of its files."""
    checkpoint: Checkpoint
    """Without entries, globals, metadata, files, faults, contents; of states, place and role."""
    tensors: Mapping[str, TensorInfo]


class DiffShard(Struct, frozen=True):
    """Result of one shard: the structure of both files, and value results of its checks."""

    number: int
    of: int
    old: ShardInput
    new: ShardInput
    places: tuple[str, str]
    tolerances: Tolerances | None
    answers: ValueResults
    remainder: RemainderDiff


def assign_shard(
    structure: StructuralDiff, number: int, shard_count: int
) -> tuple[ValueCheck, ...]:
    """Return the value checks of shard `number` (1 to `shard_count`), balanced by bytes read."""
    checks = plan_value_checks(structure)
    heaviest_first = sorted(
        range(len(checks)), key=lambda n: -count_read_nbytes(structure, checks[n])
    )
    shard_loads = [0] * shard_count
    own_indices: list[int] = []
    for n in heaviest_first:
        lightest_shard = shard_loads.index(min(shard_loads))
        shard_loads[lightest_shard] += count_read_nbytes(structure, checks[n]) + 1
        if lightest_shard == number - 1:
            own_indices.append(n)
    return tuple(checks[n] for n in sorted(own_indices))


def build_shard(
    structure: StructuralDiff,
    number: int,
    shard_count: int,
    tolerances: Tolerances | None,
    results: ValueResults,
) -> DiffShard:
    """Return the serializable result of one shard: the input of `merge_shards`."""
    return DiffShard(
        number=number,
        of=shard_count,
        old=_build_input(structure.old, structure.old_tensors),
        new=_build_input(structure.new, structure.new_tensors),
        places=structure.places,
        tolerances=tolerances,
        answers=results,
        remainder=structure.remainder,
    )


def merge_shards(shards: Mapping[str, DiffShard]) -> CheckpointDiff:
    """Merge all shards, given by file name, into the CheckpointDiff.

    Raises:
        UsageError: a shard is missing or duplicate, or the files or options differ between shards.
    """
    named_shards = list(shards.items())
    name, first = named_shards[0]
    for other_name, shard in named_shards[1:]:
        _check_same_inputs(name, first, other_name, shard)
    _check_complete(named_shards)
    results = merge_value_results(shard.answers for _, shard in named_shards)
    structure = compare_tensors_structure(
        _restore_checkpoint(first.old),
        _restore_checkpoint(first.new),
        first.places,
        first.old.tensors,
        first.new.tensors,
    )
    structure = replace(structure, remainder=first.remainder)
    if key := first_unchecked_key(structure, results):
        raise UsageError(f"{name}: no part compared {key!r}: they were made by different versions")
    return build_checkpoint_diff(structure, results, first.tolerances)


def encode_shard(shard: DiffShard) -> Mapping[str, Any]:
    """Return a shard as plain data; Path values in it are reduced to file names."""
    data: Mapping[str, Any] = msgspec.to_builtins(shard, enc_hook=_encode_value)
    return data


def decode_shard(name: str, data: object) -> DiffShard:
    """Return the shard in the data of a report; `name` is the report's file, for messages.

    Raises:
        UsageError: the data is no shard.
    """
    try:
        return msgspec.convert(data, DiffShard, dec_hook=_decode_value)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{name}: is not a part that `ckptool diff --shard I/N --format json` wrote: {error}"
        ) from error


def _build_input(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> ShardInput:
    checkpoint_without_entries = replace(
        checkpoint,
        states=tuple(StateDict(state.at, {}, state.role) for state in checkpoint.states),
        entries=(),
        globals=(),
        metadata={},
        files=(),
        faults=(),
        contents={},
    )
    files = checkpoint.files or (checkpoint.path,)
    return ShardInput(
        str(checkpoint.path), _compute_identity(files), checkpoint_without_entries, dict(tensors)
    )


def _restore_checkpoint(shard_input: ShardInput) -> Checkpoint:
    return replace(shard_input.checkpoint, path=parse_location(shard_input.path))


def _compute_identity(files: Sequence[Location]) -> str:
    from hashlib import sha256  # imported lazily: it starts OpenSSL

    content_hash = sha256()
    for path in files:
        with open_source(path) as source:
            content_hash.update(f"{path.name} {source.nbytes}\n".encode("utf-8", "surrogateescape"))
            last_offset = max(0, source.nbytes - _SAMPLE_NBYTES)
            for offset in sorted(
                {last_offset * n // (_SAMPLE_COUNT - 1) for n in range(_SAMPLE_COUNT)}
            ):
                content_hash.update(
                    source.read(offset, min(_SAMPLE_NBYTES, source.nbytes - offset))
                )
    return content_hash.hexdigest()


def _check_same_inputs(
    name: str, first: DiffShard, other_name: str, other_shard: DiffShard
) -> None:
    for side, first_input, other_input in (
        ("OLD", first.old, other_shard.old),
        ("NEW", first.new, other_shard.new),
    ):
        if (first_input.identity, first_input.tensors) != (
            other_input.identity,
            other_input.tensors,
        ):
            raise UsageError(
                f"{other_name}: its {side} ({other_input.path}) is not that of {name}"
                f" ({first_input.path})"
            )
    for setting, first_setting, other_setting in (
        ("N of --shard I/N", first.of, other_shard.of),
        ("--at", first.places, other_shard.places),
        ("--rtol and --atol", first.tolerances, other_shard.tolerances),
    ):
        if first_setting != other_setting:
            raise UsageError(f"{other_name}: was made with a different {setting} than {name}")


def _check_complete(named_shards: Sequence[tuple[str, DiffShard]]) -> None:
    shard_count = named_shards[0][1].of
    names_by_number: dict[int, str] = {}
    for name, shard in named_shards:
        if not 1 <= shard.number <= shard_count:
            raise UsageError(f"{name}: claims to be part {shard.number} of {shard_count}")
        if shard.number in names_by_number:
            raise UsageError(
                f"{name}: is part {shard.number}, as {names_by_number[shard.number]} is"
            )
        names_by_number[shard.number] = name
    if len(names_by_number) < shard_count:
        missing = list(_iter_missing_shards(names_by_number, shard_count))
        more = (
            f" and {shard_count - len(names_by_number) - len(missing)} more"
            if shard_count - len(names_by_number) > len(missing)
            else ""
        )
        raise UsageError(
            f"{shard_count - len(names_by_number)} of {shard_count} parts are missing:"
            f" {', '.join(missing)}{more}. Make them with `ckptool diff OLD NEW --shard I/N"
            " --format json -o FILE`"
        )


def _iter_missing_shards(names_by_number: Mapping[int, str], shard_count: int) -> Iterator[str]:
    listed_count = 0
    for number in range(1, shard_count + 1):
        if number not in names_by_number and listed_count < 5:
            listed_count += 1
            yield f"{number}/{shard_count}"
        if listed_count == 5:
            return


def _encode_value(value: object) -> object:
    if isinstance(value, Path | RemotePath):
        return value.name
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError


def _decode_value(kind: type, value: object) -> object:
    if cast("object", kind) is Location and isinstance(value, str):
        return Path(value)
    raise NotImplementedError

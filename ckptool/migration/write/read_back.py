"""Read back a written file, compare it with its draft, and compute its digests."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from ckptool.compare.digest import compute_state_digest
from ckptool.compare.states import get_state
from ckptool.errors import CorruptCheckpointError, WriteError
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import Limits
from ckptool.migration.plan.conversion import iter_outer_places
from ckptool.migration.plan.draft import Draft, PlannedTensor
from ckptool.migration.write.background_fingerprints import Fingerprints
from ckptool.migration.write.early_copy import is_verified_copy
from ckptool.migration.write.provenance import MigrationDigests
from ckptool.migration.write.tensor_bytes import build_blob
from ckptool.migration.write.tied_items import add_tied_tensors
from ckptool.model import (
    Checkpoint,
    PlainEntry,
    Span,
    StateDict,
    TensorInfo,
    join_key,
    natural_sort_key,
)
from ckptool.phrases import join_limited
from ckptool.values import fingerprint
from ckptool.values.equality import are_equal, equal_many
from ckptool.values.fingerprint_many import fingerprint_many, fingerprint_tensor


def read_back_file(
    draft: Draft,
    path: Path,
    target: Path,
    place: str,
    get_fingerprints: Callable[[StateDict], Fingerprints] | None,
    limits: Limits,
    verified_spans: Mapping[int, Span] = MappingProxyType({}),
) -> MigrationDigests:
    """Compare the file at `path` with the draft, element by element, and return its digests.

    The state_dict is at `place` in it.

    Without `get_fingerprints` the digests are "". `verified_spans` (position in the file -> source
    span) has the tensors that were read back when they were written; they are not read again.

    Raises:
        WriteError: keys or elements differ from the draft, or there is nothing to read.
    """
    checkpoint = _open_result(path, target, limits)
    tensors = _get_state_tensors(checkpoint, place, target)
    if tensors.keys() != draft.items.keys():
        differing_keys = join_limited(
            sorted(tensors.keys() ^ draft.items.keys(), key=natural_sort_key), 3, more=""
        )
        raise WriteError(f"{target}: not written: read back, its keys differ: {differing_keys}")
    uncast_items = {key: item for key, item in draft.items.items() if not item.casts}
    pairs = [
        (key, item.tensor, tensors[key])
        for key, item in uncast_items.items()
        if not (verified_spans and is_verified_copy(item.tensor, tensors[key], verified_spans))
    ]
    _check_equal([*pairs, *_iter_other_states(draft, checkpoint)], target)
    cast_keys = draft.items.keys() - uncast_items.keys()
    for key in cast_keys:
        if fingerprint_tensor(tensors[key]) != _compute_expected_fingerprint(draft.items[key]):
            raise WriteError(f"{target}: not written: read back, `{key}` differs")
    if get_fingerprints is None:
        return MigrationDigests("", "")
    source_fingerprints = get_fingerprints(draft.state)
    # Tensors that equal a tensor of the source have its fingerprint.
    result_fingerprints = {
        key: source_fingerprints[item.source_key]
        for key, item in uncast_items.items()
        if item.source_key in source_fingerprints
    }
    remaining_keys = [key for key in tensors if key not in result_fingerprints]
    result_fingerprints |= zip(
        remaining_keys, fingerprint_many(tensors[key] for key in remaining_keys), strict=True
    )
    source_digest = compute_state_digest(source_fingerprints)
    if result_fingerprints == source_fingerprints:
        return MigrationDigests(source_digest, source_digest)
    return MigrationDigests(source_digest, compute_state_digest(result_fingerprints))


def _open_result(path: Path, target: Path, limits: Limits) -> Checkpoint:
    """Describe the file at `path`, which is yet to get the name `target`.

    Raises:
        WriteError: it cannot be read.
    """
    try:
        return open_checkpoint(path, limits)
    except CorruptCheckpointError as error:
        raise WriteError(f"{target}: not written: read back, it {error.reason}") from error


def _get_state_tensors(
    checkpoint: Checkpoint, place: str, target: Path
) -> Mapping[str, TensorInfo]:
    state = get_state(checkpoint, place)
    if not state.tensors:
        raise WriteError(f"{target}: not written: read back, no state is at `{place or '.'}`")
    return add_tied_tensors(state.tensors, checkpoint.metadata)


def _iter_other_states(
    draft: Draft, checkpoint: Checkpoint
) -> Iterable[tuple[str, TensorInfo, TensorInfo]]:
    """Yield (key, source, result) for the tensors of all other state_dicts of the file."""
    if draft.is_extracted:
        return
    states_by_path: dict[str, StateDict] = {
        result_state.at: result_state for result_state in checkpoint.states
    }
    packed_places = draft.packed_places
    for state in draft.checkpoint.states:
        result_state = states_by_path.get(packed_places.get(state.at, state.at))
        if state.at != draft.state.at and result_state is not None and len(checkpoint.states) > 1:
            for key, tensor in state.tensors.items():
                if key in result_state.tensors:
                    yield f"{state.at}.{key}", tensor, result_state.tensors[key]


def _check_equal(pairs: list[tuple[str, TensorInfo, TensorInfo]], target: Path) -> None:
    plain_pairs = [pair for pair in pairs if not pair[1].parts]
    results = equal_many((expected, actual) for _, expected, actual in plain_pairs)
    differing_keys = [
        key for (key, _, _), is_equal in zip(plain_pairs, results, strict=True) if is_equal is False
    ]
    differing_keys += [
        k
        for k, expected, actual in pairs
        if expected.parts and are_equal(expected, actual) is False
    ]
    if differing_keys:
        raise WriteError(f"{target}: not written: read back, `{differing_keys[0]}` differs")


def check_entries(
    source: Checkpoint, path: Path, target: Path, changed_places: Collection[str], limits: Limits
) -> None:
    """Compare the plain values of the file at `path` with the source's.

    Not compared: values of which a part was left out or has another form (`changed_places`). Values
    next to an array, which is written as a tensor, are compared by their descriptions.

    Raises:
        WriteError: one is missing, or differs.
    """
    result = _open_result(path, target, limits)
    values = dict(_iter_leaves(result.entries))
    expected_texts = {entry.at: entry.text for entry in source.entries}
    described = {
        place
        for state in result.states
        for key, text in state.non_tensors.items()
        if expected_texts.get(place := join_key(state.at, key)) == text
    }
    changed = frozenset(changed_places)
    around_changed = {outer for place in changed for outer in iter_outer_places(place)}
    for place, value in _iter_leaves(source.entries):
        is_changed = place in around_changed or any(
            outer in changed or outer in described for outer in (place, *iter_outer_places(place))
        )
        if not is_changed and not _is_same(values.get(place, _MISSING), value):
            raise WriteError(f"{target}: not written: read back, `{place}` differs")


_MISSING: Final = object()


def _iter_leaves(entries: Iterable[PlainEntry]) -> Iterator[tuple[str, object]]:
    """Yield (place, value) of the innermost plain values; an empty dict or list is one.

    How much of an object is one entry depends on what else is in it.
    """
    pending = [(entry.at, entry.value) for entry in entries if entry.value is not None]
    while pending:
        place, value = pending.pop()
        children = dict(enumerate(value)) if isinstance(value, list) else value
        pairs = children.items() if isinstance(children, dict) else ()
        inner = [(join_key(place, str(key)), child) for key, child in pairs]
        pending += inner
        if not inner:
            yield place, value


def _is_same(value: object, expected: object) -> bool:
    """Compare plain values; NaN equals itself."""
    return value == expected or repr(value) == repr(expected)


def _compute_expected_fingerprint(item: PlannedTensor) -> str:
    chunks = build_blob(item).iter_chunks
    assert chunks is not None
    return fingerprint.fingerprint_chunks(item.dtype, item.tensor.shape, chunks())

"""Read back a written file, compare it with its draft, and compute its digests."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from ckptool import content
from ckptool.digests import content_digest
from ckptool.errors import WriteError
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import Limits
from ckptool.migration.ahead import same_tensor
from ckptool.migration.draft import Draft, Item
from ckptool.migration.execute import blob
from ckptool.migration.prints import Fingerprints
from ckptool.migration.provenance import Digests
from ckptool.migration.ties import with_ties
from ckptool.model import Checkpoint, Span, State, TensorInfo
from ckptool.values import equal, equal_many, fingerprint, fingerprint_many


def read_back(
    draft: Draft,
    path: Path,
    target: Path,
    prints: Callable[[State], Fingerprints] | None,
    limits: Limits,
    proved: Mapping[int, Span] = MappingProxyType({}),
) -> Digests:
    """Compare the file at `path` with the draft, element by element, and return its digests.

    Without `get_fingerprints` the digests are "". `verified_spans` (position in the file -> source
    span) has the tensors that were read back when they were written; they are not read again.

    Raises:
        WriteError: keys or elements differ from the draft.
    """
    written = open_checkpoint(path, limits)
    found = _state(written, draft, target)
    if found.keys() != draft.items.keys():
        odd = ", ".join(sorted(found.keys() ^ draft.items.keys())[:3])
        raise WriteError(f"{target}: not written: read back, its keys differ: {odd}")
    plain = {key: item for key, item in draft.items.items() if not item.casts}
    pairs = [
        (key, item.tensor, found[key])
        for key, item in plain.items()
        if not same_tensor(item.tensor, found[key], proved)
    ]
    _check_equal([*pairs, *_around(draft, written)], target)
    casts = draft.items.keys() - plain.keys()
    for key in casts:
        if fingerprint(found[key]) != _expected(draft.items[key]):
            raise WriteError(f"{target}: not written: read back, `{key}` differs")
    if prints is None:
        return Digests("", "")
    before = prints(draft.state)
    # Tensors that equal a tensor of the source have its fingerprint.
    known = {key: before[item.origin] for key, item in plain.items() if item.origin in before}
    fresh = [key for key in found if key not in known]
    known |= zip(fresh, fingerprint_many(found[key] for key in fresh), strict=True)
    return Digests(content_digest(before), content_digest(known))


def _state(written: Checkpoint, draft: Draft, target: Path) -> Mapping[str, TensorInfo]:
    places = (draft.state.at, "") if len(written.states) > 1 else ("",)
    states = [s for at in places for s in written.states if s.at == at] or list(written.states)
    if not states:
        raise WriteError(f"{target}: not written: read back, there is no state in it")
    return with_ties(states[0].tensors, written.metadata)


def _around(draft: Draft, written: Checkpoint) -> Iterable[tuple[str, TensorInfo, TensorInfo]]:
    """Yield (key, source, result) for the tensors of all other state_dicts of the file."""
    places: dict[str, State] = {s.at: s for s in written.states}
    for state in draft.checkpoint.states:
        kept = places.get(state.at)
        if state.at != draft.state.at and kept is not None and len(written.states) > 1:
            for key, tensor in state.tensors.items():
                if key in kept.tensors:
                    yield f"{state.at}.{key}", tensor, kept.tensors[key]


def _check_equal(pairs: list[tuple[str, TensorInfo, TensorInfo]], target: Path) -> None:
    plain = [pair for pair in pairs if not pair[1].parts]
    told = equal_many((one, other) for _, one, other in plain)
    differing = [key for (key, _, _), same in zip(plain, told, strict=True) if same is False]
    differing += [k for k, one, other in pairs if one.parts and equal(one, other) is False]
    if differing:
        raise WriteError(f"{target}: not written: read back, `{differing[0]}` differs")


def _expected(item: Item) -> str:
    chunks = blob(item).chunks
    assert chunks is not None
    return content.fingerprint(item.dtype, item.tensor.shape, chunks())

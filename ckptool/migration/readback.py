"""What was written, read again -> its digests; a difference from what was meant is an error."""

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
    """Compare the file at `path` with the draft, element by element.

    Without `prints`, no digests are taken. What `proved` says was read back when it was written is
    not read again: position in the file -> the bytes that are there.

    Raises:
        WriteError: it does not hold what it should.
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
    # What is equal to a tensor of the source has the fingerprint of that.
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
    """Yield the tensors of all other states that the result should have kept."""
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

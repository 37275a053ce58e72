"""Checkpoint -> CheckpointDigest: a content digest of each tensor and one over all of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ckptool.compare import all_tensors, named_state
from ckptool.content import FINGERPRINT, PIECE, hasher
from ckptool.elements import obstacle
from ckptool.errors import ReadError, UsageError
from ckptool.formats.files import open_source
from ckptool.locations import Location
from ckptool.model import Checkpoint, Skipped, TensorInfo, natural
from ckptool.values import fingerprint_many

EVERYWHERE: Final = "*"
"""Value of `CheckpointDigest.at` for all states of a file."""
_PARTIAL: Final = "partial:"
_RESTLESS: Final = frozenset({".data/serialization_id"})
"""Metadata that differs with each save of the same content."""


class TensorDigest(Struct, frozen=True):
    """Content digest of one tensor."""

    key: str
    """Prefixed with the state's `at` if several states are digested."""
    dtype: str
    shape: tuple[int, ...]
    digest: str
    """Fingerprint in hex; "" if the elements are unreadable."""
    reason: str = ""
    """Why the elements are unreadable; "" if they are not."""


class Digest(Struct, frozen=True):
    """Content digest of a checkpoint, or of one state in it."""

    checkpoint: Checkpoint
    at: str
    """`at` of the state; `ALL_STATES` for all states of the file."""
    tensors: tuple[TensorDigest, ...]
    """In natural order of the keys."""
    whole: str
    """`compute_state_digest` of all tensors; starts with "partial:" if one was unreadable."""

    @property
    def complete(self) -> bool:
        return not self.whole.startswith(_PARTIAL)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        tensors = tuple(Skipped(f"digest of {t.key}", t.reason) for t in self.tensors if t.reason)
        damage = self.checkpoint.damage
        return (*tensors, Skipped("what follows the damage", damage)) if damage else tensors


class Saved(Struct, frozen=True):
    """Digest of one checkpoint read from an earlier JSON report."""

    path: str
    at: str
    digest: str
    tensors: tuple[TensorDigest, ...]


class Differences(Struct, frozen=True):
    """Keys whose content differs from a saved digest."""

    changed: tuple[str, ...]
    missing: tuple[str, ...]
    """In the saved digest, not in the checkpoint."""
    added: tuple[str, ...]
    untold: tuple[str, ...]
    """Keys without a digest on one side."""

    @property
    def any(self) -> bool:
        return bool(self.changed or self.missing or self.added)


class _Report(Struct, frozen=True):
    command: str
    format: str
    checkpoints: tuple[Saved, ...]


def content_digest(fingerprints: Mapping[str, str | None], *, complete: bool = True) -> str:
    """Return the digest (hex) of a state from its keys and the fingerprints of their tensors.

    If a fingerprint is None, or `complete` is False, "partial:" replaces the first characters, so
    that the result is never equal to the digest of a complete state.
    """
    digest = hasher()
    for key in sorted(fingerprints):
        digest.update(f"{key}\0{fingerprints[key] or '-'}\n".encode("utf-8", "surrogatepass"))
    text = digest.hexdigest()
    known = all(one and not one.startswith(_PARTIAL) for one in fingerprints.values())
    return text if complete and known else _PARTIAL + text[len(_PARTIAL) :]


def digested(checkpoint: Checkpoint, at: str | None = None) -> Digest:
    """Digest the state at `at`, or all states; of several, `at` is prefixed to the keys.

    Raises:
        ReadError: a file became unreadable or changed since it was described.
        UsageError: the file has no such state.
    """
    tensors, place = _chosen(checkpoint, at)
    keys = sorted(tensors, key=natural)
    found = dict(zip(keys, fingerprint_many(tensors[key] for key in keys), strict=True))
    return Digest(
        checkpoint,
        place,
        tuple(_one(key, tensors[key], found[key]) for key in keys),
        content_digest(found, complete=not checkpoint.damage),
    )


def saved_digest(path: Path, checkpoint: Location) -> Saved:
    """Read the digest of `checkpoint` from a report of `ckptool digest --format json`.

    Raises:
        ReadError: unreadable, no such report, or without exactly one digest that fits.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Report)
    except OSError as error:
        raise ReadError(path, error.strerror or str(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = f"is no report of `ckptool digest --format json`: {error}"
        raise ReadError(path, reason) from error
    if found.command != "digest" or found.format != FINGERPRINT:
        made = f"is a report of {found.command}, digests of the format {found.format}"
        raise ReadError(path, f"{made}; what is needed is digest, {FINGERPRINT}")
    same = [one for one in found.checkpoints if one.path == str(checkpoint)]
    fitting = same or list(found.checkpoints)
    if len(fitting) != 1:
        names = ", ".join(one.path for one in found.checkpoints) or "nothing"
        raise ReadError(path, f"holds digests of {names}, and none of {checkpoint}")
    return fitting[0]


def place_of(saved: Saved, checkpoint: Checkpoint) -> str | None:
    """Return `at` of the saved digest if the checkpoint has such a state; None: all states."""
    return saved.at if any(s.at == saved.at for s in checkpoint.states) else None


def differences(saved: Saved, now: Digest) -> Differences:
    """Compare a saved digest with the current one, by key."""
    before, after = ({t.key: t for t in tensors} for tensors in (saved.tensors, now.tensors))
    both = [(before[key], after[key]) for key in after if key in before]
    forms = {a.key for a, b in both if (a.dtype, a.shape) != (b.dtype, b.shape)}
    untold = {a.key for a, b in both if not (a.digest and b.digest)} - forms
    differ = {a.key for a, b in both if a.digest != b.digest} - untold
    return Differences(
        changed=tuple(key for key in after if key in differ | forms),
        missing=tuple(sorted(before.keys() - after.keys(), key=natural)),
        added=tuple(key for key in after if key not in before),
        untold=tuple(key for key in after if key in untold),
    )


def lines(digest: Digest) -> Iterator[str]:
    """Yield the lines of a text that changes only with the content: a textconv for `git diff`.

    Path and file size are omitted; keys are in natural order.
    """
    checkpoint = digest.checkpoint
    yield f"container {checkpoint.container}"
    for name, text in sorted(checkpoint.metadata.items()):
        if name not in _RESTLESS:
            yield f"metadata {name} = {text}"
    for entry in sorted(checkpoint.entries, key=lambda entry: natural(entry.at)):
        yield f"entry {entry.at} = {entry.text}"
    for state in checkpoint.states:
        for key, text in sorted(state.others.items(), key=lambda item: natural(item[0])):
            yield f"entry {_placed(state.at, key)} = {text}"
    only = checkpoint.states[0].at if len(checkpoint.states) == 1 else ""
    around = only if digest.at == EVERYWHERE else digest.at
    for one in digest.tensors:
        shape = "x".join(map(str, one.shape)) or "scalar"
        content = one.digest[:16] or f"({one.reason})"
        yield f"tensor {_placed(around, one.key)} {one.dtype} {shape} {content}"
    if checkpoint.damage:
        yield f"damage {checkpoint.damage}"


def content_of_file(path: Location) -> str:
    """Return "BLAKE3 of its N bytes: HEX", or the reason why the file cannot be read.

    Used for files that cannot be parsed as checkpoints.
    """
    try:
        with open_source(path) as source:
            starts = range(0, source.nbytes, PIECE)
            pieces = (source.read(at, min(PIECE, source.nbytes - at)) for at in starts)
            digest = hasher()
            for piece in pieces:
                digest.update(piece)
            return f"BLAKE3 of its {source.nbytes} bytes: {digest.hexdigest()[:16]}"
    except ReadError as error:
        return error.reason


def _chosen(checkpoint: Checkpoint, at: str | None) -> tuple[Mapping[str, TensorInfo], str]:
    if at is None:
        return _everything(checkpoint), EVERYWHERE
    state = named_state(checkpoint, at)
    return state.tensors, state.at


def _everything(checkpoint: Checkpoint) -> Mapping[str, TensorInfo]:
    """Return the tensors of all states; keys of a single state get no prefix.

    Raises:
        UsageError: two states have the same prefixed key.
    """
    if len(checkpoint.states) == 1:
        return checkpoint.states[0].tensors
    tensors = all_tensors(checkpoint)
    if len(tensors) < sum(len(state.tensors) for state in checkpoint.states):
        raise UsageError(
            f"{checkpoint.path}: two of its states make the same keys: name one by --at"
        )
    return tensors


def _one(key: str, tensor: TensorInfo, found: str | None) -> TensorDigest:
    reason = "" if found else obstacle(tensor)
    return TensorDigest(key, tensor.dtype, tensor.shape, found or "", reason)


def _placed(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key

"""Checkpoint -> what names its content: a digest of each tensor, and one of them all."""

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
"""In place of a place: all states of a file."""
_PARTIAL: Final = "partial:"
_RESTLESS: Final = frozenset({".data/serialization_id"})
"""Metadata that a container makes of its own bytes: another one with each save."""


class TensorDigest(Struct, frozen=True):
    """What names the content of one tensor."""

    key: str
    """With its state's place in front, where several states are digested."""
    dtype: str
    shape: tuple[int, ...]
    digest: str
    """"" where the elements could not be had."""
    reason: str = ""
    """Why they could not."""


class Digest(Struct, frozen=True):
    """What names the content of a checkpoint, or of one state in it."""

    checkpoint: Checkpoint
    at: str
    """The state's place; `EVERYWHERE` for all of the file's."""
    tensors: tuple[TensorDigest, ...]
    """By key, in natural order."""
    whole: str
    """`content_digest` of them; it begins with "partial:" where something could not be read."""

    @property
    def complete(self) -> bool:
        return not self.whole.startswith(_PARTIAL)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        tensors = tuple(Skipped(f"digest of {t.key}", t.reason) for t in self.tensors if t.reason)
        damage = self.checkpoint.damage
        return (*tensors, Skipped("what follows the damage", damage)) if damage else tensors


class Saved(Struct, frozen=True):
    """A digest as a report of before has it."""

    path: str
    at: str
    digest: str
    tensors: tuple[TensorDigest, ...]


class Differences(Struct, frozen=True):
    """How the content differs from what was saved, by key."""

    changed: tuple[str, ...]
    missing: tuple[str, ...]
    """Saved, and not there any more."""
    added: tuple[str, ...]
    untold: tuple[str, ...]
    """Those of which one side has no digest."""

    @property
    def any(self) -> bool:
        return bool(self.changed or self.missing or self.added)


class _Report(Struct, frozen=True):
    command: str
    format: str
    checkpoints: tuple[Saved, ...]


def content_digest(fingerprints: Mapping[str, str | None], *, complete: bool = True) -> str:
    """Return a digest of a state: of its keys, and of the fingerprints of their tensors.

    Where one of them is None, or not all could be seen, it says so: "partial:" takes the place of
    its first characters, so that it can never be taken for a digest of the whole.
    """
    digest = hasher()
    for key in sorted(fingerprints):
        digest.update(f"{key}\0{fingerprints[key] or '-'}\n".encode("utf-8", "surrogatepass"))
    text = digest.hexdigest()
    known = all(one and not one.startswith(_PARTIAL) for one in fingerprints.values())
    return text if complete and known else _PARTIAL + text[len(_PARTIAL) :]


def digested(checkpoint: Checkpoint, at: str | None = None) -> Digest:
    """Digest the state at `at`, or all states: the place is in front of the keys of several.

    Raises:
        ReadError: a file cannot be read any more, or is not what was described.
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
    """Read the digest of `checkpoint` that a JSON report of before holds.

    Raises:
        ReadError: it cannot be read, is no such report, or does not say which digest is meant.
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
    """Return where to look for the state that was digested: its place, where the file has it."""
    return saved.at if any(s.at == saved.at for s in checkpoint.states) else None


def differences(saved: Saved, now: Digest) -> Differences:
    """Compare by key."""
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
    """Yield a checkpoint as text whose lines stay the same where the content does: for `git diff`.

    Where the file lies and how large it is are left out, and keys are in natural order.
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
    """Return what tells two files apart of which no more can be said, in a few words."""
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
    """Return the tensors of all states; of an only one as it is, wherever it lies in the file."""
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

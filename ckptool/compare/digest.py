"""Checkpoint -> CheckpointDigest: a content digest of each tensor and one over all of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ckptool.compare.left_out_ties import restore_declared_ties
from ckptool.compare.states import require_state, require_undamaged
from ckptool.errors import ReadError, describe_os_error
from ckptool.formats.files.source import open_source
from ckptool.locations import Location, read_small_file
from ckptool.model import Checkpoint, Skipped, TensorInfo, all_tensors, join_key, natural_sort_key
from ckptool.values.elements import unreadable_reason
from ckptool.values.fingerprint import FINGERPRINT_FORMAT, PIECE, create_hasher
from ckptool.values.fingerprint_many import fingerprint_many
from ckptool.values.progress import start_step

ALL_STATES: Final = "*"
"""Value of `CheckpointDigest.at` for all states of a file."""
_PARTIAL_PREFIX: Final = "partial:"
_VOLATILE_METADATA: Final = frozenset({".data/serialization_id"})
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


class CheckpointDigest(Struct, frozen=True):
    """Content digest of a checkpoint, or of one state in it."""

    checkpoint: Checkpoint
    at: str
    """`at` of the state; `ALL_STATES` for all states of the file."""
    tensors: tuple[TensorDigest, ...]
    """In natural order of the keys."""
    digest: str
    """`compute_state_digest` of all tensors; starts with "partial:" if one was unreadable."""

    @property
    def is_complete(self) -> bool:
        return not self.digest.startswith(_PARTIAL_PREFIX)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        tensors = tuple(Skipped(f"digest of {t.key}", t.reason) for t in self.tensors if t.reason)
        missing = tuple(
            Skipped(name, "the index names it, and it does not exist")
            for name in self.checkpoint.missing_parts
        )
        return (*tensors, *self.checkpoint.opaque, *missing, *self.checkpoint.skipped)


class SavedDigest(Struct, frozen=True):
    """Digest of one checkpoint read from an earlier JSON report."""

    path: str
    at: str
    digest: str
    tensors: tuple[TensorDigest, ...]


class DigestDiff(Struct, frozen=True):
    """Keys whose content differs from a saved digest."""

    changed_keys: tuple[str, ...]
    missing_keys: tuple[str, ...]
    """In the saved digest, not in the checkpoint."""
    added_keys: tuple[str, ...]
    uncompared_keys: tuple[str, ...]
    """Keys without a digest on one side."""

    @property
    def has_changes(self) -> bool:
        return bool(self.changed_keys or self.missing_keys or self.added_keys)


class _SavedDigestReport(Struct, frozen=True):
    command: str
    format: str
    checkpoints: tuple[SavedDigest, ...]


def compute_state_digest(fingerprints: Mapping[str, str | None], *, complete: bool = True) -> str:
    """Return the digest (hex) of a state from its keys and the fingerprints of their tensors.

    If a fingerprint is None, or `complete` is False, "partial:" replaces the first characters, so
    that the result is never equal to the digest of a complete state.
    """
    content_hash = create_hasher()
    for key in sorted(fingerprints):
        content_hash.update(f"{key}\0{fingerprints[key] or '-'}\n".encode("utf-8", "surrogatepass"))
    text = content_hash.hexdigest()
    all_complete = all(
        fingerprint and not fingerprint.startswith(_PARTIAL_PREFIX)
        for fingerprint in fingerprints.values()
    )
    return text if complete and all_complete else _PARTIAL_PREFIX + text[len(_PARTIAL_PREFIX) :]


def digest_checkpoint(checkpoint: Checkpoint, at: str | None = None) -> CheckpointDigest:
    """Digest the state at `at`, or all states; of several, `at` is prefixed to the keys.

    Raises:
        ReadError: it is damaged, or a file became unreadable or changed since it was described.
        UsageError: the file has no such state.
    """
    require_undamaged(checkpoint)
    tensors, place = _select_tensors(checkpoint, at)
    keys = sorted(tensors, key=natural_sort_key)
    start_step(f"hashing {checkpoint.path.name}", sum(t.nbytes for t in tensors.values()))
    fingerprints = dict(zip(keys, fingerprint_many(tensors[key] for key in keys), strict=True))
    return CheckpointDigest(
        checkpoint,
        place,
        tuple(_build_tensor_digest(key, tensors[key], fingerprints[key]) for key in keys),
        compute_state_digest(
            fingerprints,
            complete=not (checkpoint.opaque or checkpoint.missing_parts),
        ),
    )


def read_saved_digest(path: Path, checkpoint: Location) -> SavedDigest:
    """Read the digest of `checkpoint` from a report of `ckptool digest --format json`.

    Raises:
        ReadError: unreadable, no such report, or without exactly one digest that fits.
    """
    try:
        saved_report = msgspec.json.decode(read_small_file(path), type=_SavedDigestReport)
    except OSError as error:
        raise ReadError(path, describe_os_error(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = f"is not a report of `ckptool digest --format json`: {error}"
        raise ReadError(path, reason) from error
    if saved_report.command != "digest" or saved_report.format != FINGERPRINT_FORMAT:
        description = (
            f"is a report of {saved_report.command}, digests of the format {saved_report.format}"
        )
        raise ReadError(path, f"{description}; expected digest, {FINGERPRINT_FORMAT}")
    path_matches = [saved for saved in saved_report.checkpoints if saved.path == str(checkpoint)]
    candidates = path_matches or list(saved_report.checkpoints)
    if len(candidates) != 1:
        names = ", ".join(saved.path for saved in saved_report.checkpoints) or "nothing"
        raise ReadError(path, f"has digests of {names}, but none of {checkpoint}")
    return candidates[0]


def locate_saved_state(saved: SavedDigest, checkpoint: Checkpoint) -> str | None:
    """Return `at` of the saved digest if the checkpoint has such a state; None: all states."""
    return saved.at if any(s.at == saved.at for s in checkpoint.states) else None


def compare_digests(saved: SavedDigest, current: CheckpointDigest) -> DigestDiff:
    """Compare a saved digest with the current one, by key."""
    saved_tensors, current_tensors = (
        {t.key: t for t in tensors} for tensors in (saved.tensors, current.tensors)
    )
    common = [
        (saved_tensors[key], current_tensors[key])
        for key in current_tensors
        if key in saved_tensors
    ]
    changed_types = {a.key for a, b in common if (a.dtype, a.shape) != (b.dtype, b.shape)}
    uncompared_keys = {a.key for a, b in common if not (a.digest and b.digest)} - changed_types
    changed_digests = {a.key for a, b in common if a.digest != b.digest} - uncompared_keys
    return DigestDiff(
        changed_keys=tuple(
            key for key in current_tensors if key in changed_digests | changed_types
        ),
        missing_keys=tuple(
            sorted(saved_tensors.keys() - current_tensors.keys(), key=natural_sort_key)
        ),
        added_keys=tuple(key for key in current_tensors if key not in saved_tensors),
        uncompared_keys=tuple(key for key in current_tensors if key in uncompared_keys),
    )


def textconv_lines(digest: CheckpointDigest) -> Iterator[str]:
    """Yield the lines of a text that changes only with the content: a textconv for `git diff`.

    Path and file size are omitted; keys are in natural order.
    """
    checkpoint = digest.checkpoint
    yield f"container {checkpoint.container}"
    for name, text in sorted(checkpoint.metadata.items()):
        if name not in _VOLATILE_METADATA:
            yield f"metadata {name} = {text}"
    for entry in sorted(checkpoint.entries, key=lambda entry: natural_sort_key(entry.at)):
        yield f"entry {entry.at} = {entry.text}"
    for state in checkpoint.states:
        for key, text in sorted(
            state.non_tensors.items(), key=lambda item: natural_sort_key(item[0])
        ):
            yield f"entry {join_key(state.at, key)} = {text}"
    only_state_at = checkpoint.states[0].at if len(checkpoint.states) == 1 else ""
    prefix = only_state_at if digest.at == ALL_STATES else digest.at
    for tensor in digest.tensors:
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        content = tensor.digest[:16] or f"({tensor.reason})"
        yield f"tensor {join_key(prefix, tensor.key)} {tensor.dtype} {shape} {content}"
    for part in checkpoint.opaque:
        yield f"{part.what} ({part.reason})"


def describe_file_content(path: Location) -> str:
    """Return "BLAKE3 of its N bytes: HEX", or the reason why the file cannot be read.

    Used for files that cannot be parsed as checkpoints.
    """
    try:
        with open_source(path) as source:
            offsets = range(0, source.nbytes, PIECE)
            pieces = (source.read(offset, min(PIECE, source.nbytes - offset)) for offset in offsets)
            content_hash = create_hasher()
            for piece in pieces:
                content_hash.update(piece)
            return f"BLAKE3 of its {source.nbytes} bytes: {content_hash.hexdigest()[:16]}"
    except ReadError as error:
        return error.reason


def _select_tensors(checkpoint: Checkpoint, at: str | None) -> tuple[Mapping[str, TensorInfo], str]:
    if at is None:
        return _collect_all_tensors(checkpoint), ALL_STATES
    state = require_state(checkpoint, at)
    return restore_declared_ties(checkpoint, state.tensors), state.at


def _collect_all_tensors(checkpoint: Checkpoint) -> Mapping[str, TensorInfo]:
    """Return the tensors of all states; keys of a single state get no prefix."""
    if len(checkpoint.states) == 1:
        return restore_declared_ties(checkpoint, checkpoint.states[0].tensors)
    return all_tensors(checkpoint)


def _build_tensor_digest(key: str, tensor: TensorInfo, fingerprint: str | None) -> TensorDigest:
    reason = "" if fingerprint else unreadable_reason(tensor)
    return TensorDigest(key, tensor.dtype, tensor.shape, fingerprint or "", reason)

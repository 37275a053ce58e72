"""What names the content of checkpoints."""

from msgspec import Struct

from ckptool.report.parts import Report


class TensorDigestReport(Struct, frozen=True, kw_only=True):
    key: str
    """With its state's place in front, where several states are digested."""
    dtype: str
    shape: tuple[int, ...]
    digest: str
    """The same in every container, key order and shard layout; "" where it could not be made."""
    reason: str
    """Why it could not be."""


class CheckpointDigestReport(Struct, frozen=True, kw_only=True):
    path: str
    container: str
    at: str
    """Place of the state; "*" is all of the file's."""
    digest: str
    """Of all tensors; begins with "partial:" where one of them has no digest."""
    tensors: tuple[TensorDigestReport, ...]


class DigestCheckReport(Struct, frozen=True, kw_only=True):
    """How the content differs from a digest of before, by key."""

    saved: str
    """The file with that digest."""
    digest: str
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    untold: tuple[str, ...]
    """Those of which one side has no digest."""


class DigestReport(Report, frozen=True, kw_only=True):
    format: str
    """How digests are made: "ckptool-1"."""
    checkpoints: tuple[CheckpointDigestReport, ...]
    check: DigestCheckReport | None = None
    """With --check."""
    errors: tuple[str, ...] = ()
    """One line for each path that could not be read."""

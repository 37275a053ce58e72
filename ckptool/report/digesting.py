"""Reports of `digest`: content digests of checkpoints."""

from msgspec import Struct

from ckptool.report.parts import Report


class TensorDigestReport(Struct, frozen=True, kw_only=True):
    key: str
    """With its state's `at` as prefix if several states are digested."""
    dtype: str
    shape: tuple[int, ...]
    digest: str
    """Independent of container, key order and shard layout; "" if it cannot be computed."""
    reason: str
    """Why there is no digest, else ""."""


class CheckpointDigestReport(Struct, frozen=True, kw_only=True):
    path: str
    container: str
    at: str
    """Place of the state in the file; "*": all states."""
    digest: str
    """Digest of all tensors; begins with "partial:" if one of them has no digest."""
    tensors: tuple[TensorDigestReport, ...]


class DigestCheckReport(Struct, frozen=True, kw_only=True):
    """Differences of the content from a saved digest, by key."""

    saved: str
    """The file with the saved digest."""
    digest: str
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    untold: tuple[str, ...]
    """Keys that cannot be compared: one side has no digest."""


class DigestReport(Report, frozen=True, kw_only=True):
    format: str
    """Version of the digest algorithm: "ckptool-1"."""
    checkpoints: tuple[CheckpointDigestReport, ...]
    check: DigestCheckReport | None = None
    """None without --check."""
    errors: tuple[str, ...] = ()
    """One line for each path that could not be read."""

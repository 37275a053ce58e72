"""DigestReport: the result of `digest`."""

from collections.abc import Sequence

from msgspec import Struct

from ckptool.compare.digest import CheckpointDigest, DigestDiff, SavedDigest
from ckptool.errors import ReadError
from ckptool.policy import ExitCode, Policy, judge
from ckptool.reports.common import Report, build_skipped_reports
from ckptool.values.fingerprint import FINGERPRINT_FORMAT


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
    """Key path of the state_dict inside the file; "*": all states."""
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
    uncompared: tuple[str, ...]
    """Keys that cannot be compared: one side has no digest."""


class DigestReport(Report, frozen=True, kw_only=True):
    format: str
    """Version of the digest algorithm: "ckptool-1"."""
    checkpoints: tuple[CheckpointDigestReport, ...]
    check: DigestCheckReport | None = None
    """None without --against."""
    errors: tuple[str, ...] = ()
    """One line for each path that could not be read."""
    error_paths: tuple[str, ...] = ()
    """The path of each line of `errors`."""


def build_digest_report(
    digests: tuple[CheckpointDigest, ...], errors: Sequence[ReadError]
) -> DigestReport:
    """Build the report of the digests of checkpoints."""
    return DigestReport(
        command="digest",
        findings=(),
        skipped=build_skipped_reports(s for digest in digests for s in digest.skipped),
        exit_code=ExitCode.COULD_NOT_CHECK if errors else ExitCode.PASSED,
        format=FINGERPRINT_FORMAT,
        checkpoints=tuple(map(_build_checkpoint_digest_report, digests)),
        errors=tuple(map(str, errors)),
        error_paths=tuple(str(error.path) for error in errors),
    )


def build_digest_check_report(
    digest: CheckpointDigest, saved: SavedDigest, saved_path: str, diff: DigestDiff, policy: Policy
) -> DigestReport:
    """Build the report of a comparison with a saved digest.

    The exit code is COULD_NOT_CHECK if no difference was found but a digest is missing.
    """
    exit_code = judge((), policy, differs=diff.has_changes).exit_code
    is_complete = digest.is_complete and not diff.uncompared_keys
    return DigestReport(
        command="digest",
        findings=(),
        skipped=build_skipped_reports(digest.skipped),
        exit_code=exit_code if is_complete or diff.has_changes else ExitCode.COULD_NOT_CHECK,
        format=FINGERPRINT_FORMAT,
        checkpoints=(_build_checkpoint_digest_report(digest),),
        check=DigestCheckReport(
            saved=saved_path,
            digest=saved.digest,
            changed=diff.changed_keys,
            missing=diff.missing_keys,
            added=diff.added_keys,
            uncompared=diff.uncompared_keys,
        ),
    )


def _build_checkpoint_digest_report(digest: CheckpointDigest) -> CheckpointDigestReport:
    return CheckpointDigestReport(
        path=str(digest.checkpoint.path),
        container=str(digest.checkpoint.container),
        at=digest.at,
        digest=digest.digest,
        tensors=tuple(
            TensorDigestReport(
                key=t.key, dtype=t.dtype, shape=t.shape, digest=t.digest, reason=t.reason
            )
            for t in digest.tensors
        ),
    )

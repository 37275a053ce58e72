"""CheckpointDigest, DigestDiff -> DigestReport."""

from ckptool.content import FINGERPRINT_FORMAT
from ckptool.digests import CheckpointDigest, DigestDiff, SavedDigest
from ckptool.policy import ExitCode, Policy, judge
from ckptool.report import (
    CheckpointDigestReport,
    DigestCheckReport,
    DigestReport,
    TensorDigestReport,
)
from ckptool.reporting.parts import build_skipped_reports


def build_digest_report(
    digests: tuple[CheckpointDigest, ...], errors: tuple[str, ...]
) -> DigestReport:
    """Build the report of the digests of checkpoints."""
    return DigestReport(
        command="digest",
        findings=(),
        skipped=build_skipped_reports(s for digest in digests for s in digest.skipped),
        exit_code=ExitCode.COULD_NOT_CHECK if errors else ExitCode.PASSED,
        format=FINGERPRINT_FORMAT,
        checkpoints=tuple(map(_build_checkpoint_digest_report, digests)),
        errors=errors,
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
            untold=diff.uncompared_keys,
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

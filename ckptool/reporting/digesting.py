"""CheckpointDigest, DigestDiff -> DigestReport."""

from ckptool.content import FINGERPRINT
from ckptool.digests import Differences, Digest, Saved
from ckptool.policy import ExitCode, Policy, judge
from ckptool.report import (
    CheckpointDigestReport,
    DigestCheckReport,
    DigestReport,
    TensorDigestReport,
)
from ckptool.reporting.parts import skipped_reports


def digests(found: tuple[Digest, ...], errors: tuple[str, ...]) -> DigestReport:
    """Build the report of the digests of checkpoints."""
    return DigestReport(
        command="digest",
        findings=(),
        skipped=skipped_reports(s for one in found for s in one.skipped),
        exit_code=ExitCode.COULD_NOT_CHECK if errors else ExitCode.PASSED,
        format=FINGERPRINT,
        checkpoints=tuple(map(_checkpoint, found)),
        errors=errors,
    )


def checked(
    now: Digest, saved: Saved, file: str, differ: Differences, policy: Policy
) -> DigestReport:
    """Build the report of a comparison with a saved digest.

    The exit code is COULD_NOT_CHECK if no difference was found but a digest is missing.
    """
    code = judge((), policy, differs=differ.any).exit_code
    proved = now.complete and not differ.untold
    return DigestReport(
        command="digest",
        findings=(),
        skipped=skipped_reports(now.skipped),
        exit_code=code if proved or differ.any else ExitCode.COULD_NOT_CHECK,
        format=FINGERPRINT,
        checkpoints=(_checkpoint(now),),
        check=DigestCheckReport(
            saved=file,
            digest=saved.digest,
            changed=differ.changed,
            missing=differ.missing,
            added=differ.added,
            untold=differ.untold,
        ),
    )


def _checkpoint(one: Digest) -> CheckpointDigestReport:
    return CheckpointDigestReport(
        path=str(one.checkpoint.path),
        container=str(one.checkpoint.container),
        at=one.at,
        digest=one.whole,
        tensors=tuple(
            TensorDigestReport(
                key=t.key, dtype=t.dtype, shape=t.shape, digest=t.digest, reason=t.reason
            )
            for t in one.tensors
        ),
    )

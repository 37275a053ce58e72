"""Verification of a migrated file -> CheckResult: passed or skipped; failure raises."""

from typing import Final

from ckptool.errors import UnconfirmedRenamesError, WriteError
from ckptool.migration.check.strict_load import CheckResult
from ckptool.migration.plan.pending_file import PendingFile
from ckptool.phrases import join_limited, quote_code
from ckptool.verification.result import (
    LevelResult,
    LevelStatus,
    Verification,
    VerificationLevel,
)

_REQUIRED_LEVELS: Final = (
    VerificationLevel.LOAD,
    VerificationLevel.DEVICE,
    VerificationLevel.FORWARD,
    VerificationLevel.EQUALITY,
)
"""Levels about this file; the save round trip of the module is left to `ckptool verify`."""


def require_confirmed_renames(
    pending_file: PendingFile,
    verification: Verification,
    unconfirmed: tuple[str, ...],
) -> CheckResult:
    """Confirm the renames that are tried: equal outputs, and others with other values.

    `unconfirmed` has the keys whose values the outputs do not depend on.

    Raises:
        UnconfirmedRenamesError: the outputs were not compared, or do not depend on a tensor.
    """
    equality = verification.find_level(VerificationLevel.EQUALITY)
    if equality.status is not LevelStatus.PASSED:
        raise UnconfirmedRenamesError(
            f"the old module's outputs were not compared: {equality.reason}"
        )
    keys = pending_file.keys_to_confirm
    if unconfirmed:
        raise UnconfirmedRenamesError(
            "the outputs for these inputs do not depend on the values of"
            f" {join_limited(unconfirmed, 3, quote_code)}: they cannot confirm renames of these",
            unconfirmed,
        )
    return CheckResult(
        "renames",
        "passed",
        f"{len(keys)} renamed tensors: confirmed by the old module's outputs, which differ with "
        "other values",
    )


def judge_verification(pending_file: PendingFile, verification: Verification) -> CheckResult:
    """Judge the levels that a migrated file must pass.

    Raises:
        WriteError: a level failed.
        UnconfirmedRenamesError: the outputs are others with the renames that are tried.
    """
    results = [verification.find_level(level) for level in _REQUIRED_LEVELS]
    for result in results:
        if result.status is LevelStatus.FAILED:
            reason = " ".join("; ".join(filter(None, (result.reason, *result.details))).split())
            if pending_file.keys_to_confirm and result.level is VerificationLevel.EQUALITY:
                raise UnconfirmedRenamesError(f"the old module gives different outputs: {reason}")
            message = (
                f"{pending_file.target}: not written: verification fails at"
                f" {_format_level(result)}: {reason}"
            )
            raise WriteError(message)
    passed = [str(result.level) for result in results if result.status is LevelStatus.PASSED]
    equality_details = [
        detail
        for result in results
        if result.level is VerificationLevel.EQUALITY
        for detail in result.details
    ]
    inconclusive = [result for result in results if result.status is LevelStatus.INCONCLUSIVE]
    if VerificationLevel.FORWARD not in passed or inconclusive:
        skip_reason = next(
            (result.reason for result in (*inconclusive, *results) if result.reason),
            "it was not run",
        )
        return CheckResult("forward", "skipped", skip_reason)
    return CheckResult(
        "forward",
        "passed",
        "; ".join([f"{', '.join(passed)} on {verification.device}", *equality_details]),
    )


def _format_level(result: LevelResult) -> str:
    """Return the level, and its device where the reason leaves that out."""
    names_device = result.level in (VerificationLevel.DEVICE, VerificationLevel.FORWARD)
    return f"{result.level} on {result.device}" if names_device else str(result.level)

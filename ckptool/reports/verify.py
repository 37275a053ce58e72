"""VerifyReport: the result of `verify`."""

from typing import TYPE_CHECKING

from msgspec import Struct

from ckptool.policy import ExitCode, Verdict
from ckptool.reports.common import (
    LevelReport,
    Report,
    build_finding_reports,
    build_level_report,
    build_silenced_reports,
    build_skipped_reports,
)

if TYPE_CHECKING:
    from ckptool.verification.result import Verification


class DeviceMismatchReport(Struct, frozen=True, kw_only=True):
    """An operation whose operands are on different devices."""

    attribute: str
    """"" if the tensor is not an attribute of the module."""
    what: str
    devices: tuple[str, str]
    """Actual device and expected device."""
    op: str
    where: str
    module: str


class VerifyReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"verified ...", "failed at ..." or "not verified ..."."""
    path: str
    module: str
    at: str
    device: str
    levels: tuple[LevelReport, ...]
    clashes: tuple[DeviceMismatchReport, ...]
    lost: tuple[str, ...]
    """State lost in the round trip: changed, saved and loaded, but not restored."""
    notes: tuple[str, ...]

    @property
    def unrun_reason(self) -> str:
        """Why forward was not run, "" if it was."""
        reasons = (e.reason for e in self.levels if (e.level, e.status) == ("forward", "skipped"))
        return next(reasons, "")


def build_verify_report(
    verification: "Verification", at: str, verdict: Verdict, notes: tuple[str, ...] = ()
) -> VerifyReport:
    """Build the report of a verification.

    The exit code is COULD_NOT_CHECK if nothing failed, but a level is inconclusive, or the module
    was not run.
    """
    is_unproved = any(
        level.status == "inconclusive" or (level.level == "forward" and level.status == "skipped")
        for level in verification.levels
    )
    passed = verdict.exit_code == ExitCode.PASSED and not verification.failed_levels
    return VerifyReport(
        command="verify",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(verification.skipped),
        exit_code=ExitCode.COULD_NOT_CHECK if passed and is_unproved else verdict.exit_code,
        verdict=_format_verify_verdict(verification),
        path=verification.path,
        module=verification.module,
        at=at,
        device=verification.device,
        levels=tuple(map(build_level_report, verification.levels)),
        clashes=tuple(
            DeviceMismatchReport(
                attribute=mismatch.attribute,
                what=mismatch.description,
                devices=mismatch.devices,
                op=mismatch.op,
                where=mismatch.where,
                module=mismatch.module,
            )
            for mismatch in verification.device_mismatches
        ),
        lost=verification.lost_paths,
        notes=(*notes, *verification.notes),
    )


def _format_verify_verdict(verification: "Verification") -> str:
    """Return the verdict: the failed levels, else which levels passed and which did not run."""
    levels_by_status = {
        status: [str(level.level) for level in verification.levels if level.status == status]
        for status in ("failed", "inconclusive", "skipped", "passed")
    }
    if levels_by_status["failed"]:
        reason = verification.failed_levels[0].reason
        return f"failed at {', '.join(levels_by_status['failed'])}: {reason}"
    unproved_texts = [
        f"{status}: {', '.join(levels_by_status[status])}"
        for status in ("inconclusive", "skipped")
        if levels_by_status[status]
    ]
    suffix = f" ({'; '.join(unproved_texts)})" if unproved_texts else ""
    passed = (level for level in verification.levels if level.status == "passed")
    suffix += "".join(f"; {level.reason}" for level in passed if level.reason)
    if "forward" in levels_by_status["passed"]:
        return f"verified on {verification.device}: {', '.join(levels_by_status['passed'])}{suffix}"
    return f"not verified: nothing shows that it runs on {verification.device}{suffix}"

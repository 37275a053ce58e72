"""ModuleInfo -> AuditReport, Verification -> VerifyReport."""

from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool.model import Kind, ModuleInfo
from ckptool.policy import ExitCode, Verdict
from ckptool.report import AuditReport, DeviceMismatchReport, LevelReport, VerifyReport
from ckptool.reporting.parts import (
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
    build_tensor_report,
    build_unsaved_reports,
)

if TYPE_CHECKING:
    from ckptool.verification.facts import LevelResult, UsageChanges, Verification


def build_audit_report(module: ModuleInfo, verdict: Verdict) -> AuditReport:
    """Build the report of the module's saved and unsaved tensors."""
    saved_tensors = module.saved_tensors.values()
    return AuditReport(
        command="audit",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(module.skipped),
        exit_code=verdict.exit_code,
        module=module.target,
        unsaved=build_unsaved_reports(module, None),
        parameters=tuple(
            build_tensor_report(module_tensor.tensor, module_tensor.kind)
            for module_tensor in saved_tensors
            if module_tensor.kind is Kind.PARAMETER
        ),
        persistent_buffers=tuple(
            build_tensor_report(module_tensor.tensor, module_tensor.kind)
            for module_tensor in saved_tensors
            if module_tensor.kind is not Kind.PARAMETER
        ),
    )


def build_watch_report(module: ModuleInfo, usage: "UsageChanges", verdict: Verdict) -> AuditReport:
    """Build the report of unsaved state that changed while the module was watched."""
    return replace(build_audit_report(module, verdict), command="watch", since=usage.since)


def build_verify_report(
    verification: "Verification", at: str, verdict: Verdict, notes: tuple[str, ...] = ()
) -> VerifyReport:
    """Build the report of a verification.

    The exit code is COULD_NOT_CHECK if nothing failed but a level is inconclusive.
    """
    has_inconclusive = any(level.status == "inconclusive" for level in verification.levels)
    passed = verdict.exit_code == ExitCode.PASSED and not verification.failed_levels
    return VerifyReport(
        command="verify",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(verification.skipped),
        exit_code=ExitCode.COULD_NOT_CHECK if passed and has_inconclusive else verdict.exit_code,
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


def build_level_report(level_result: "LevelResult") -> LevelReport:
    return LevelReport(
        level=str(level_result.level),
        status=str(level_result.status),
        reason=level_result.reason,
        device=level_result.device,
        details=level_result.details,
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
    if "forward" in levels_by_status["passed"]:
        return f"verified on {verification.device}: {', '.join(levels_by_status['passed'])}{suffix}"
    return f"not verified: nothing shows that it runs on {verification.device}{suffix}"

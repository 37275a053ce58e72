"""ModuleInfo -> AuditReport, Verification -> VerifyReport."""

from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool.model import Kind, ModuleState
from ckptool.policy import ExitCode, Verdict
from ckptool.report import AuditReport, ClashReport, LevelReport, VerifyReport
from ckptool.reporting.parts import (
    findings,
    silenced,
    skipped_reports,
    tensor_report,
    unsaved_reports,
)

if TYPE_CHECKING:
    from ckptool.verification.facts import LevelResult, Usage, Verification


def audited(module: ModuleState, verdict: Verdict) -> AuditReport:
    """Build the report of the module's saved and unsaved tensors."""
    saved = module.saved.values()
    return AuditReport(
        command="audit",
        findings=findings(verdict),
        silenced=silenced(verdict),
        skipped=skipped_reports(module.skipped),
        exit_code=verdict.exit_code,
        module=module.target,
        unsaved=unsaved_reports(module, None),
        parameters=tuple(
            tensor_report(h.tensor, h.kind) for h in saved if h.kind is Kind.PARAMETER
        ),
        persistent_buffers=tuple(
            tensor_report(h.tensor, h.kind) for h in saved if h.kind is not Kind.PARAMETER
        ),
    )


def watched(module: ModuleState, usage: "Usage", verdict: Verdict) -> AuditReport:
    """Build the report of unsaved state that changed while the module was watched."""
    return replace(audited(module, verdict), command="watch", since=usage.since)


def verified(
    done: "Verification", at: str, verdict: Verdict, notes: tuple[str, ...] = ()
) -> VerifyReport:
    """Build the report of a verification.

    The exit code is COULD_NOT_CHECK if nothing failed but a level is inconclusive.
    """
    unproved = any(one.status == "inconclusive" for one in done.levels)
    passed = verdict.exit_code == ExitCode.PASSED and not done.failed
    return VerifyReport(
        command="verify",
        findings=findings(verdict),
        silenced=silenced(verdict),
        skipped=skipped_reports(done.skipped),
        exit_code=ExitCode.COULD_NOT_CHECK if passed and unproved else verdict.exit_code,
        verdict=_verification_words(done),
        path=done.path,
        module=done.module,
        at=at,
        device=done.device,
        levels=tuple(map(level_report, done.levels)),
        clashes=tuple(
            ClashReport(
                attribute=one.attribute,
                what=one.what,
                devices=one.devices,
                op=one.op,
                where=one.where,
                module=one.module,
            )
            for one in done.clashes
        ),
        lost=done.lost,
        notes=(*notes, *done.notes),
    )


def level_report(one: "LevelResult") -> LevelReport:
    return LevelReport(
        level=str(one.level),
        status=str(one.status),
        reason=one.reason,
        device=one.device,
        details=one.details,
    )


def _verification_words(done: "Verification") -> str:
    """Return the verdict: the failed levels, else which levels passed and which did not run."""
    named = {
        status: [str(one.level) for one in done.levels if one.status == status]
        for status in ("failed", "inconclusive", "skipped", "passed")
    }
    if named["failed"]:
        reason = done.failed[0].reason
        return f"failed at {', '.join(named['failed'])}: {reason}"
    left = [f"{s}: {', '.join(named[s])}" for s in ("inconclusive", "skipped") if named[s]]
    rest = f" ({'; '.join(left)})" if left else ""
    if "forward" in named["passed"]:
        return f"verified on {done.device}: {', '.join(named['passed'])}{rest}"
    return f"not verified: nothing shows that it runs on {done.device}{rest}"

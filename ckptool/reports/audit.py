"""AuditReport: the result of `audit` and `watch`."""

from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool.model import Kind, ModuleInfo
from ckptool.policy import ExitCode, Verdict
from ckptool.reports.common import (
    Report,
    TensorReport,
    UnsavedTensorReport,
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
    build_tensor_report,
    build_unsaved_reports,
    format_project_verdict,
)

if TYPE_CHECKING:
    from ckptool.verification.result import ObjectChanges, UsageChanges


class AuditReport(Report, frozen=True, kw_only=True):
    module: str
    unsaved: tuple[UnsavedTensorReport, ...]
    parameters: tuple[TensorReport, ...]
    persistent_buffers: tuple[TensorReport, ...]
    since: str = ""
    """Of a watched module: since when `unsaved` lists changed state (and only that); else ""."""
    is_object: bool = False
    """Whether it is no module, but a watched optimizer, scheduler, ...: its findings say all."""

    @property
    def has_details(self) -> bool:
        return bool(self.unsaved) or super().has_details


class ProjectAuditReport(Report, frozen=True, kw_only=True):
    """The modules of the configuration, each with a report of its own."""

    verdict: str
    modules: tuple[AuditReport, ...]
    errors: tuple[str, ...] = ()
    """Modules that could not be built, and why."""

    @property
    def module_reports(self) -> tuple[AuditReport, ...]:
        return self.modules


def build_project_audit_report(
    modules: tuple[AuditReport, ...], errors: tuple[str, ...]
) -> ProjectAuditReport:
    """Build the report of all modules of a configuration; its exit code is the worst."""
    failed_count = sum(bool(module.exit_code) for module in modules)
    return ProjectAuditReport(
        command="audit",
        findings=tuple(finding for module in modules for finding in module.findings),
        silenced=tuple(silenced for module in modules for silenced in module.silenced),
        skipped=tuple(skipped for module in modules for skipped in module.skipped),
        exit_code=ExitCode.COULD_NOT_CHECK if errors else max(m.exit_code for m in modules),
        verdict=format_project_verdict(len(modules), failed_count, len(errors)),
        modules=modules,
        errors=errors,
    )


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


def build_object_report(changes: "ObjectChanges", verdict: Verdict) -> AuditReport:
    """Build the report of what an object with a state_dict does not save of what changed in it."""
    return AuditReport(
        command="watch",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(changes.skipped),
        exit_code=verdict.exit_code,
        module=changes.name,
        unsaved=(),
        parameters=(),
        persistent_buffers=(),
        since=changes.since,
        is_object=True,
    )

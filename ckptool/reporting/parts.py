"""Findings, tensors and skipped checks -> the structs that all reports share."""

from collections.abc import Iterable

from ckptool.compare import ModuleDiff
from ckptool.model import Kind, ModuleInfo, ModuleTensor, Skipped, StateDict, TensorInfo
from ckptool.policy import Verdict
from ckptool.report import (
    FactReport,
    FindingReport,
    SilencedReport,
    SkippedReport,
    TensorReport,
    UnsavedTensorReport,
)
from ckptool.rules import Finding


def build_finding_reports(verdict: Verdict) -> tuple[FindingReport, ...]:
    return tuple(map(_build_finding_report, verdict.findings))


def build_silenced_reports(verdict: Verdict) -> tuple[SilencedReport, ...]:
    return tuple(
        SilencedReport(
            finding=_build_finding_report(entry.finding), by=entry.by, reason=entry.reason
        )
        for entry in verdict.silenced
    )


def _build_finding_report(finding: Finding) -> FindingReport:
    return FindingReport(
        code=finding.rule.code,
        name=finding.rule.name,
        level=finding.level.word,
        key=finding.key,
        message=finding.message,
        fix=finding.fix,
        facts=finding.facts,
        path=finding.path,
        where=finding.where,
        fails=finding.fails,
        fingerprint=finding.fingerprint,
    )


def build_skipped_reports(skipped: Iterable[Skipped], path: str = "") -> tuple[SkippedReport, ...]:
    return tuple(SkippedReport(what=s.what, reason=s.reason, path=path) for s in skipped)


def build_fact_reports(pairs: Iterable[tuple[str, str]]) -> tuple[FactReport, ...]:
    return tuple(FactReport(name=name, value=value) for name, value in pairs)


def build_tensor_report(tensor: TensorInfo, kind: Kind | None) -> TensorReport:
    return TensorReport(
        key=tensor.key,
        shape=tensor.shape,
        dtype=tensor.dtype,
        nbytes=tensor.nbytes,
        device=tensor.device,
        kind=str(kind or ""),
        layout=tensor.layout,
    )


def build_unsaved_reports(
    module: ModuleInfo, state: StateDict | None
) -> tuple[UnsavedTensorReport, ...]:
    """Build the reports of unsaved tensors, without aliases; `state` is the file's state_dict."""
    pickled_tensors = state.unsaved_tensors if state else {}
    return tuple(
        _build_unsaved_report(module_tensor, module_tensor.key in pickled_tensors)
        for module_tensor in module.unsaved_tensors.values()
        if not module_tensor.alias_of
    )


def _build_unsaved_report(module_tensor: ModuleTensor, in_file: bool) -> UnsavedTensorReport:  # noqa: FBT001
    return UnsavedTensorReport(
        key=module_tensor.key,
        kind=str(module_tensor.kind),
        owner=module_tensor.owner,
        shape=module_tensor.tensor.shape,
        dtype=module_tensor.tensor.dtype,
        nbytes=module_tensor.tensor.nbytes,
        constancy=str(module_tensor.constancy),
        follows_to=module_tensor.follows_to,
        where=module_tensor.assigned_at,
        used=module_tensor.used_at,
        in_file=in_file,
    )


def pluralize(number: int, noun: str) -> str:
    """Format a count and its noun: "1 key", "2 keys"; no thousands separators."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_load_failure(diff: ModuleDiff) -> str:
    """Return "does not load: " and the number of missing, unexpected and mismatched keys."""
    mismatch_counts = (
        (len(diff.missing_keys), "missing"),
        (len(diff.unexpected_keys), "unexpected"),
        (len(diff.shape_mismatches), "of another shape"),
    )
    return "does not load: " + ", ".join(f"{n} {word}" for n, word in mismatch_counts if n)

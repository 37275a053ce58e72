"""Findings, tensors and skipped checks -> the structs that all reports share."""

from collections.abc import Iterable

from ckptool.compare import Loading
from ckptool.model import Held, Kind, ModuleState, Skipped, State, TensorInfo
from ckptool.policy import Verdict
from ckptool.report import (
    FactReport,
    FindingReport,
    SilencedReport,
    SkippedReport,
    TensorReport,
    UnsavedReport,
)
from ckptool.rules import Finding


def findings(verdict: Verdict) -> tuple[FindingReport, ...]:
    return tuple(map(_finding, verdict.findings))


def silenced(verdict: Verdict) -> tuple[SilencedReport, ...]:
    return tuple(
        SilencedReport(finding=_finding(one.finding), by=one.by, reason=one.reason)
        for one in verdict.silenced
    )


def _finding(finding: Finding) -> FindingReport:
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


def skipped_reports(skipped: Iterable[Skipped], path: str = "") -> tuple[SkippedReport, ...]:
    return tuple(SkippedReport(what=s.what, reason=s.reason, path=path) for s in skipped)


def fact_reports(pairs: Iterable[tuple[str, str]]) -> tuple[FactReport, ...]:
    return tuple(FactReport(name=name, value=value) for name, value in pairs)


def tensor_report(tensor: TensorInfo, kind: Kind | None) -> TensorReport:
    return TensorReport(
        key=tensor.key,
        shape=tensor.shape,
        dtype=tensor.dtype,
        nbytes=tensor.nbytes,
        device=tensor.device,
        kind=str(kind or ""),
        layout=tensor.layout,
    )


def unsaved_reports(module: ModuleState, state: State | None) -> tuple[UnsavedReport, ...]:
    """Build the reports of unsaved tensors, without aliases; `state` is the file's state_dict."""
    kept = state.unsaved if state else {}
    return tuple(
        _unsaved_one(held, held.key in kept)
        for held in module.unsaved.values()
        if not held.alias_of
    )


def _unsaved_one(held: Held, in_file: bool) -> UnsavedReport:  # noqa: FBT001
    return UnsavedReport(
        key=held.key,
        kind=str(held.kind),
        owner=held.owner,
        shape=held.tensor.shape,
        dtype=held.tensor.dtype,
        nbytes=held.tensor.nbytes,
        constancy=str(held.constancy),
        follows_to=held.follows_to,
        where=held.where,
        used=held.used,
        in_file=in_file,
    )


def counted(number: int, noun: str) -> str:
    """Format a count and its noun: "1 key", "2 keys"; no thousands separators."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def counts(loading: Loading) -> str:
    """Return "does not load: " and the number of missing, unexpected and mismatched keys."""
    counts = (
        (len(loading.missing_keys), "missing"),
        (len(loading.unexpected_keys), "unexpected"),
        (len(loading.mismatched), "of another shape"),
    )
    return "does not load: " + ", ".join(f"{n} {word}" for n, word in counts if n)

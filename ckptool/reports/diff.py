"""DiffModuleReport: the result of `diff` of a checkpoint and a module."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from ckptool.compare.explain_key import explain_module_key
from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import Skipped
from ckptool.phrases import join_limited, quote_code
from ckptool.policy import Verdict
from ckptool.reports.common import (
    FactReport,
    Report,
    UnsavedTensorReport,
    build_fact_reports,
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
    build_unsaved_reports,
    format_load_failure,
)
from ckptool.rules import Finding, Level


class KeyVerdict(Struct, frozen=True, kw_only=True):
    """The problem, severity and fix of one key that does not match."""

    key: str
    problem: str
    """"missing", "unexpected" or "mismatched"."""
    code: str
    what: str
    level: str
    fix: str


class DiffModuleReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"loads strictly", "loads, but ..." or "does not load ..."."""
    path: str
    module: str
    at: str
    notes: tuple[str, ...]
    matched: tuple[str, ...]
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    mismatched_keys: tuple[str, ...]
    verdicts: tuple[KeyVerdict, ...]
    unsaved: tuple[UnsavedTensorReport, ...]
    coverage: float
    """Fraction of the parameters' elements that would load, 0 to 1."""
    explanation: tuple[FactReport, ...] = ()
    """Facts about the key of --explain, () without it."""


def build_module_diff_report(
    diff: ModuleDiff,
    verdict: Verdict,
    notes: tuple[str, ...],
    explain: str | None = None,
    extra_skipped: tuple[Skipped, ...] = (),
) -> DiffModuleReport:
    """Build the report of loading the file into the module.

    Raises:
        UsageError: `explain` is a key that is on neither side.
    """
    return DiffModuleReport(
        command="diff",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(
            (*diff.checkpoint.skipped, *diff.module.skipped, *extra_skipped)
        ),
        exit_code=verdict.exit_code,
        verdict=_format_module_diff_verdict(diff, verdict),
        path=str(diff.checkpoint.path),
        module=diff.module.target,
        at=diff.state.at,
        notes=notes,
        matched=diff.matched_keys,
        missing_keys=diff.missing_keys,
        unexpected_keys=diff.unexpected_keys,
        mismatched_keys=tuple(c.key for c in diff.shape_mismatches),
        verdicts=tuple(_build_key_verdicts(diff, verdict)),
        unsaved=build_unsaved_reports(diff.module, diff.state),
        coverage=diff.coverage,
        explanation=build_fact_reports(explain_module_key(diff, explain) if explain else ()),
    )


def _format_module_diff_verdict(diff: ModuleDiff, verdict: Verdict) -> str:
    if not diff.is_strict:
        return format_load_failure(diff)
    serious_findings = [f for f in verdict.findings if f.level >= Level.WARNING]
    if not serious_findings and diff.retied_keys:
        names = join_limited(diff.retied_keys, 1, quote_code)
        return f"loads with safetensors.torch.load_model, which ties {names} again"
    if not serious_findings:
        return "loads strictly"
    unsaved_keys = {f.key for f in serious_findings if f.rule.code.startswith("CK1")}
    if unsaved_keys:
        names = join_limited(sorted(unsaved_keys), 3, quote_code, more=" ...")
        return f"loads, but {names} {'is' if len(unsaved_keys) == 1 else 'are'} not saved with it"
    serious_findings = [f for f in serious_findings if not f.rule.code.startswith("CK3")]
    return (
        f"loads, but {_extract_first_clause(serious_findings[0])}"
        if serious_findings
        else "loads strictly"
    )


def _extract_first_clause(finding: Finding) -> str:
    """Return the message up to ": "."""
    return finding.message.split(": ", 1)[0]


def _build_key_verdicts(diff: ModuleDiff, verdict: Verdict) -> list[KeyVerdict]:
    findings_by_key: dict[str, Finding] = {}
    for finding in verdict.findings:
        if finding.rule.code.startswith("CK2") or finding.rule.code == "CK112":
            findings_by_key.setdefault(finding.key, finding)
    shared_findings = _index_shared_findings(diff, verdict)
    groups = (
        ("missing", diff.missing_keys),
        ("unexpected", diff.unexpected_keys),
        ("mismatched", tuple(c.key for c in diff.shape_mismatches)),
    )
    return [
        _build_key_verdict(key, problem, shared_findings.get(key) or findings_by_key.get(key))
        for problem, keys in groups
        for key in keys
    ]


def _index_shared_findings(diff: ModuleDiff, verdict: Verdict) -> dict[str, Finding]:
    """Map each key to the finding on a prefix rewrite, rename or group that explains it."""
    findings_by_code = {f.rule.code: f for f in verdict.findings if f.rule.code == "CK209"}
    shared_findings: dict[str, Finding] = {}
    if diff.rewrite and "CK209" in findings_by_code:
        for old, new in diff.rewrite.key_map.items():
            shared_findings[old] = shared_findings[new] = findings_by_code["CK209"]
    for finding in verdict.findings:
        if finding.rule.code in _MULTI_KEY_RULES:
            shared_findings |= dict.fromkeys(map(str, _get_fact_keys(finding)), finding)
        if finding.rule.code == "CK211":
            shared_findings[finding.key] = shared_findings[str(finding.facts["found"])] = finding
    return shared_findings


_MULTI_KEY_RULES: Final = frozenset({"CK217", "CK218", "CK219", "CK501"})
"""Rules whose findings cover all keys in their facts."""


def _get_fact_keys(finding: Finding) -> Iterable[object]:
    keys = finding.facts.get("keys")
    return keys if isinstance(keys, list) else ()


def _build_key_verdict(key: str, problem: str, finding: Finding | None) -> KeyVerdict:
    if finding is None:
        return KeyVerdict(key=key, problem=problem, code="", what="", level="", fix="")
    return KeyVerdict(
        key=key,
        problem=problem,
        code=finding.rule.code,
        what=finding.message,
        level=finding.level.word,
        fix=finding.fix,
    )

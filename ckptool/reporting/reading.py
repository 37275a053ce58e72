"""Checkpoint -> InspectReport, ModuleDiff -> DiffModuleReport."""

from collections.abc import Iterable
from typing import Final

from ckptool.compare import ModuleDiff
from ckptool.explain import explain_module_key
from ckptool.model import Checkpoint, Skipped, StateDict, tied_keys
from ckptool.policy import ExitCode, Verdict
from ckptool.report import (
    CheckpointReport,
    DiffModuleReport,
    EntryReport,
    InspectReport,
    KeyVerdict,
    StateReport,
)
from ckptool.reporting.parts import (
    build_fact_reports,
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
    build_tensor_report,
    build_unsaved_reports,
    format_load_failure,
)
from ckptool.rules import Finding, Level


def build_inspect_report(
    checkpoints: tuple[Checkpoint, ...],
    verdict: Verdict,
    errors: tuple[str, ...],
    extra_skipped: tuple[Skipped, ...] = (),
) -> InspectReport:
    """Build the report of the checkpoints' contents."""
    return InspectReport(
        command="inspect",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(
            (*(s for c in checkpoints for s in c.skipped), *extra_skipped)
        ),
        exit_code=ExitCode.COULD_NOT_CHECK if errors else verdict.exit_code,
        checkpoints=tuple(_build_checkpoint_report(c) for c in checkpoints),
        errors=errors,
    )


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
        first, *remaining = diff.retied_keys
        names = f"`{first}`" + (f" and {len(remaining)} more" if remaining else "")
        return f"loads with safetensors.torch.load_model, which ties {names} again"
    if not serious_findings:
        return "loads strictly"
    unsaved_keys = {f.key for f in serious_findings if f.rule.code.startswith("CK1")}
    if unsaved_keys:
        names = ", ".join(f"`{k}`" for k in sorted(unsaved_keys)[:3]) + (
            " ..." if len(unsaved_keys) > 3 else ""
        )
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


def _build_checkpoint_report(checkpoint: Checkpoint) -> CheckpointReport:
    return CheckpointReport(
        path=str(checkpoint.path),
        container=str(checkpoint.container),
        nbytes=checkpoint.nbytes,
        globals=tuple(sorted({use.qualified_name for use in checkpoint.globals})),
        states=tuple(_build_state_report(state) for state in checkpoint.states),
        entries=tuple(EntryReport(at=e.at, text=e.text) for e in checkpoint.entries),
        metadata=checkpoint.metadata,
        damage=checkpoint.damage,
    )


def _build_state_report(state: StateDict) -> StateReport:
    return StateReport(
        at=state.at,
        role=state.role,
        tensors=tuple(build_tensor_report(t, t.kind) for t in state.tensors.values()),
        unsaved=tuple(build_tensor_report(t, t.kind) for t in state.unsaved_tensors.values()),
        others=state.non_tensors,
        ties=tied_keys(state.tensors.values()),
    )

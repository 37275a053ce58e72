"""Checkpoint -> InspectReport, ModuleDiff -> DiffModuleReport."""

from collections.abc import Iterable
from typing import Final

from ckptool.compare import Loading
from ckptool.explain import explain_loading
from ckptool.model import Checkpoint, Skipped, State, ties
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
    counts,
    fact_reports,
    findings,
    silenced,
    skipped_reports,
    tensor_report,
    unsaved_reports,
)
from ckptool.rules import Finding, Level


def inspected(
    checkpoints: tuple[Checkpoint, ...],
    verdict: Verdict,
    errors: tuple[str, ...],
    unseen: tuple[Skipped, ...] = (),
) -> InspectReport:
    """Build the report of the checkpoints' contents."""
    return InspectReport(
        command="inspect",
        findings=findings(verdict),
        silenced=silenced(verdict),
        skipped=skipped_reports((*(s for c in checkpoints for s in c.skipped), *unseen)),
        exit_code=ExitCode.COULD_NOT_CHECK if errors else verdict.exit_code,
        checkpoints=tuple(_checkpoint(c) for c in checkpoints),
        errors=errors,
    )


def loaded(
    loading: Loading,
    verdict: Verdict,
    notes: tuple[str, ...],
    explain: str | None = None,
    unseen: tuple[Skipped, ...] = (),
) -> DiffModuleReport:
    """Build the report of loading the file into the module.

    Raises:
        UsageError: `explain` is a key that is on neither side.
    """
    return DiffModuleReport(
        command="diff",
        findings=findings(verdict),
        silenced=silenced(verdict),
        skipped=skipped_reports((*loading.checkpoint.skipped, *loading.module.skipped, *unseen)),
        exit_code=verdict.exit_code,
        verdict=_loading_words(loading, verdict),
        path=str(loading.checkpoint.path),
        module=loading.module.target,
        at=loading.state.at,
        notes=notes,
        matched=loading.matched,
        missing_keys=loading.missing_keys,
        unexpected_keys=loading.unexpected_keys,
        mismatched_keys=tuple(c.key for c in loading.mismatched),
        verdicts=tuple(_verdicts(loading, verdict)),
        unsaved=unsaved_reports(loading.module, loading.state),
        coverage=loading.coverage,
        explanation=fact_reports(explain_loading(loading, explain) if explain else ()),
    )


def _loading_words(loading: Loading, verdict: Verdict) -> str:
    if not loading.strict:
        return counts(loading)
    graver = [f for f in verdict.findings if f.level >= Level.WARNING]
    if not graver and loading.restored:
        first, *more = loading.restored
        names = f"`{first}`" + (f" and {len(more)} more" if more else "")
        return f"loads with safetensors.torch.load_model, which ties {names} again"
    if not graver:
        return "loads strictly"
    lost = {f.key for f in graver if f.rule.code.startswith("CK1")}
    if lost:
        names = ", ".join(f"`{k}`" for k in sorted(lost)[:3]) + (" ..." if len(lost) > 3 else "")
        return f"loads, but {names} {'is' if len(lost) == 1 else 'are'} not saved with it"
    graver = [f for f in graver if not f.rule.code.startswith("CK3")]
    return f"loads, but {_first_sentence(graver[0])}" if graver else "loads strictly"


def _first_sentence(finding: Finding) -> str:
    """Return the message up to ": "."""
    return finding.message.split(": ", 1)[0]


def _verdicts(loading: Loading, verdict: Verdict) -> list[KeyVerdict]:
    by_key: dict[str, Finding] = {}
    for finding in verdict.findings:
        if finding.rule.code.startswith("CK2") or finding.rule.code == "CK112":
            by_key.setdefault(finding.key, finding)
    explained = _explained(loading, verdict)
    groups = (
        ("missing", loading.missing_keys),
        ("unexpected", loading.unexpected_keys),
        ("mismatched", tuple(c.key for c in loading.mismatched)),
    )
    return [
        _verdict(key, problem, explained.get(key) or by_key.get(key))
        for problem, keys in groups
        for key in keys
    ]


def _explained(loading: Loading, verdict: Verdict) -> dict[str, Finding]:
    """Map each key to the finding on a prefix rewrite, rename or group that explains it."""
    found = {f.rule.code: f for f in verdict.findings if f.rule.code == "CK209"}
    explained: dict[str, Finding] = {}
    if loading.rewrite and "CK209" in found:
        for old, new in loading.rewrite.keys.items():
            explained[old] = explained[new] = found["CK209"]
    for finding in verdict.findings:
        if finding.rule.code in _ON_SEVERAL:
            explained |= dict.fromkeys(map(str, _keys(finding)), finding)
        if finding.rule.code == "CK211":
            explained[finding.key] = explained[str(finding.facts["found"])] = finding
    return explained


_ON_SEVERAL: Final = frozenset({"CK217", "CK218", "CK219", "CK501"})
"""Rules whose findings cover all keys in their facts."""


def _keys(finding: Finding) -> Iterable[object]:
    keys = finding.facts.get("keys")
    return keys if isinstance(keys, list) else ()


def _verdict(key: str, problem: str, finding: Finding | None) -> KeyVerdict:
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


def _checkpoint(checkpoint: Checkpoint) -> CheckpointReport:
    return CheckpointReport(
        path=str(checkpoint.path),
        container=str(checkpoint.container),
        nbytes=checkpoint.nbytes,
        globals=tuple(sorted({use.qualified for use in checkpoint.globals})),
        states=tuple(_state(state) for state in checkpoint.states),
        entries=tuple(EntryReport(at=e.at, text=e.text) for e in checkpoint.entries),
        metadata=checkpoint.metadata,
        damage=checkpoint.damage,
    )


def _state(state: State) -> StateReport:
    return StateReport(
        at=state.at,
        role=state.role,
        tensors=tuple(tensor_report(t, t.kind) for t in state.tensors.values()),
        unsaved=tuple(tensor_report(t, t.kind) for t in state.unsaved.values()),
        others=state.others,
        ties=ties(state.tensors.values()),
    )

"""DiffModuleReport: the result of `diff` of a checkpoint and a module."""

from collections.abc import Mapping

from msgspec import Struct

from ckptool.compare.explain_key import explain_module_key
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.placeholders import find_placeholder_targets
from ckptool.folding import fold_names
from ckptool.model import Container, Skipped, natural_sort_key
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
    format_strict_load,
    format_unchecked_load,
)
from ckptool.rules import Finding, Level
from ckptool.rules.registry import RuleFamily


class KeyReport(Struct, frozen=True, kw_only=True):
    """The problem, severity and fix of one key that does not match."""

    key: str
    problem: str
    """"missing", "unexpected" or "mismatched"."""
    code: str
    what: str
    level: str
    fix: str


class LoadStepReport(Struct, frozen=True, kw_only=True):
    """What the module's own loading code, or a framework's loader, does with one key."""

    key: str
    does: str
    """"renamed", "reshaped", "permuted", "sliced", "added", "computed", "converted", "partial",
    "discarded" or "lost"."""
    file_key: str = ""
    """Key of the file whose tensor it is, "" if it has the same name, or none."""
    operation: str = ""
    """For "converted", what a framework's loader does: "stacked, concatenated"."""
    file_keys: tuple[str, ...] = ()
    """For "converted", all keys of the file that it is made of."""


class RenameGroupReport(Struct, frozen=True, kw_only=True):
    """Keys of the file that are probably keys of the module, by one change of the code."""

    old: str
    """Pattern of the keys in the file; the keys themselves are in `keys`."""
    new: str
    """Pattern of the keys in the module."""
    keys: Mapping[str, str]
    """Key in the file -> key in the module."""
    evidence: str
    unambiguous: bool
    """Whether nothing else in file or module would fit as well."""
    documented: bool = False
    """Whether the library documents the new names."""
    transposed: tuple[str, ...] = ()
    """Keys of the file whose two dimensions have to be swapped too."""


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
    verdicts: tuple[KeyReport, ...]
    unsaved: tuple[UnsavedTensorReport, ...]
    coverage: float
    """Fraction of the parameters' elements that would load, 0 to 1."""
    explanation: tuple[FactReport, ...] = ()
    """Facts about the key of --explain, () without it."""
    loader: str = "torch"
    """Framework whose own loader was asked; "torch" for `load_state_dict`."""
    container: str = ""
    """Container of the checkpoint: "torch-zip", "safetensors" ..."""
    are_keys_known: bool = True
    """Whether the lists of keys are: a framework's loader that raises gives none."""
    is_coverage_known: bool = True
    """False if torch refuses what matches by key and shape, that was not checked, or weights are
    quantised on one side only."""
    load_steps: tuple[LoadStepReport, ...] = ()
    """What the module's own loading code does in addition to copying tensors by name."""
    mistyped_keys: Mapping[str, str] = {}
    """Key of a tensor of the module -> what the file has there that torch does not load as one."""
    renames: tuple[RenameGroupReport, ...] = ()
    """Keys of the file that are probably keys of the module."""


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
    is_raised = diff.loading_info is not None and bool(diff.loading_info.error)
    are_keys_known = not (is_raised and diff.is_refused)
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
        module=diff.module.label,
        at=diff.state.at,
        notes=notes,
        matched=diff.matched_keys if are_keys_known else (),
        are_keys_known=are_keys_known,
        missing_keys=diff.missing_keys,
        unexpected_keys=diff.unexpected_keys,
        mismatched_keys=tuple(c.key for c in diff.shape_mismatches),
        mistyped_keys=diff.mistyped_keys,
        verdicts=tuple(_build_key_reports(diff, verdict)),
        unsaved=build_unsaved_reports(diff.module, diff.state),
        coverage=diff.coverage,
        explanation=build_fact_reports(explain_module_key(diff, explain) if explain else ()),
        loader=diff.module.loader,
        container=str(diff.checkpoint.container),
        is_coverage_known=not (diff.is_refused or diff.unchecked_load or diff.quantization),
        load_steps=tuple(
            LoadStepReport(
                key=step.key,
                does=str(step.kind),
                file_key=step.file_key,
                operation=step.operation,
                file_keys=step.file_keys,
            )
            for step in diff.load_steps
        ),
        renames=tuple(
            RenameGroupReport(
                old=group.old_pattern,
                new=group.new_pattern,
                keys=group.pairs,
                evidence=group.evidence,
                unambiguous=group.is_unambiguous,
                documented=group.is_documented,
                transposed=group.transposed_keys,
            )
            for group in diff.rename_groups
        ),
    )


def _format_module_diff_verdict(diff: ModuleDiff, verdict: Verdict) -> str:
    if not diff.is_strict:
        return format_load_failure(diff)
    if diff.unchecked_load is not None:
        return format_unchecked_load(diff, diff.unchecked_load)
    success = _format_retied_verdict(diff) if diff.retied_keys else format_strict_load(diff)
    serious_findings = [f for f in verdict.findings if f.level >= Level.WARNING]
    unsaved_keys = {
        f.key for f in serious_findings if f.key and f.rule.family is RuleFamily.MODULE_STATE
    }
    if unsaved_keys:
        folded_names = fold_names(sorted(unsaved_keys, key=natural_sort_key))
        names = join_limited(folded_names, 3, quote_code, more=" ...")
        verb = "is" if len(unsaved_keys) == 1 else "are"
        return f"loads, but {names} {verb} not in the state_dict and will not be saved"
    load_findings = [f for f in serious_findings if f.rule.family is not RuleFamily.CONTAINER]
    return f"loads, but {load_findings[0].summary}" if load_findings else success


def _format_retied_verdict(diff: ModuleDiff) -> str:
    names = join_limited(diff.retied_keys, 1, quote_code)
    if diff.checkpoint.container is Container.SAFETENSORS:
        return f"loads with safetensors.torch.load_model, which ties {names} again"
    return f"loads with strict=False: tied to keys of the file, but not in it: {names}"


def _build_key_reports(diff: ModuleDiff, verdict: Verdict) -> list[KeyReport]:
    findings_by_key: dict[str, Finding] = {}
    for finding in verdict.findings:
        if finding.rule.family is RuleFamily.LOADING or finding.rule.explains_key:
            findings_by_key.setdefault(finding.key, finding)
    shared_findings = _index_shared_findings(verdict)
    for key, placeholder in find_placeholder_targets(diff).items():
        if placeholder in shared_findings:
            shared_findings.setdefault(key, shared_findings[placeholder])
    groups = (
        ("missing", diff.missing_keys),
        ("unexpected", diff.unexpected_keys),
        ("mismatched", tuple(c.key for c in diff.shape_mismatches)),
        ("no tensor", tuple(diff.mistyped_keys)),
    )
    return [
        _build_key_report(key, problem, shared_findings.get(key) or findings_by_key.get(key))
        for problem, keys in groups
        for key in sorted(keys, key=natural_sort_key)
    ]


def _index_shared_findings(verdict: Verdict) -> dict[str, Finding]:
    """Map each key to the finding on a prefix, a rename or a group of tensors that explains it."""
    return {
        key: finding
        for finding in verdict.findings
        if finding.explained_keys
        for key in (finding.key, *finding.explained_keys)
    }


def _build_key_report(key: str, problem: str, finding: Finding | None) -> KeyReport:
    if finding is None:
        return KeyReport(key=key, problem=problem, code="", what="", level="", fix="")
    return KeyReport(
        key=key,
        problem=problem,
        code=finding.rule.code,
        what=finding.message,
        level=finding.level.word,
        fix=finding.fix,
    )

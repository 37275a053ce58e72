"""GateReport and PolicyReport: the results of `gate`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool.compare.contracts.contract import FixtureResult
from ckptool.compare.contracts.contract_diff import Compatibility, ContractDiff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import Checkpoint, Skipped
from ckptool.phrases import join_limited, pluralize, quote_code
from ckptool.policy import ExitCode, Verdict
from ckptool.policy.resolve import PolicySetting
from ckptool.reports.common import (
    FindingReport,
    LevelReport,
    Report,
    build_finding_reports,
    build_level_report,
    build_silenced_reports,
    build_skipped_reports,
)
from ckptool.reports.problems import count_problems, group_by_cause
from ckptool.rules.release.policy_issues import POLICY_ISSUE_CODES
from ckptool.verification.result import GoldenReplay

if TYPE_CHECKING:
    from ckptool.verification.result import Verification


class PromiseReport(Struct, frozen=True, kw_only=True):
    """One compatibility requirement of a release and its result."""

    what: str
    """"against", "fixture" or "golden"."""
    name: str
    result: str
    """"compatible", "additive", "breaking" ...; "loads strictly", "migrates: ..." ..."""
    reason: str = ""
    """Why a fixture has no migration path, or how outputs differ."""


class GatedCheckpointReport(Struct, frozen=True, kw_only=True):
    """The results of one checkpoint of a release."""

    path: str
    verdict: str
    """"passed", "failed: ..." or "could not be checked: ..."."""
    passed: bool
    container: str = ""
    """"" if the checkpoint could not be read; then all fields below keep their defaults."""
    nbytes: int = 0
    module: str = ""
    """"" if none is named: rules about modules were not run."""
    at: str = ""
    rules: tuple[str, ...] = ()
    """Codes of the rules that ran on it."""
    levels: tuple[LevelReport, ...] = ()
    """Levels of the verification that the policy requires."""
    promises: tuple[PromiseReport, ...] = ()
    revision: str = ""
    """Its place in the project's chain of migrations: "is at NAME, by its stamp"; "" without a
    chain."""

    @property
    def is_unchecked(self) -> bool:
        """Whether it could not be checked; a module without checkpoint has no container."""
        return not (self.container or self.module)


class GateReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"passed ...", "failed ..." or "could not check ..."."""
    checkpoints: tuple[GatedCheckpointReport, ...]
    policy: str
    """The file of the policy, "" if there is none."""
    errors: tuple[str, ...] = ()
    """One line for each checkpoint that could not be checked."""
    error_paths: tuple[str, ...] = ()
    """The path of each line of `errors`."""
    notes: tuple[str, ...] = ()

    @property
    def has_multiple_checkpoints(self) -> bool:
        return len(self.checkpoints) > 1


class SettingReport(Struct, frozen=True, kw_only=True):
    name: str
    value: str
    origin: str
    """"default", an option, or "FILE: [table]"."""
    path: str = ""
    """The checkpoint that the setting applies to, "" for all."""


class PolicyReport(Report, frozen=True, kw_only=True):
    settings: tuple[SettingReport, ...]


class GateEvidence(Struct, frozen=True):
    """Compatibility results of a release (subjects of the rules) and the skipped checks."""

    contract_diff: ContractDiff | None = None
    fixtures: tuple[FixtureResult, ...] = ()
    replays: tuple[GoldenReplay, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    unchecked: tuple[Skipped, ...] = ()
    """What this checkpoint had to be held to and could not be."""
    golden: tuple[str, ...] = ()
    """The files of recorded outputs that were named, replayed or not."""

    @property
    def subjects(self) -> tuple[object, ...]:
        contract_diffs = () if self.contract_diff is None else (self.contract_diff,)
        return (*contract_diffs, *self.fixtures, *self.replays)


class GateInput(Struct, frozen=True):
    """The results of one checkpoint (or of a module without one) in a gate."""

    path: str
    checkpoint: Checkpoint | None
    module_diff: ModuleDiff | None
    verification: "Verification | None"
    skipped: tuple[Skipped, ...]
    rules: tuple[str, ...]
    evidence: GateEvidence = GateEvidence()
    revision: str = ""
    """Its place in the project's chain of migrations, "" without a chain."""


def build_gate_report(
    gate_inputs: Sequence[GateInput],
    errors: Mapping[str, str],
    order: tuple[str, ...],
    verdict: Verdict,
    policy_source: str,
) -> GateReport:
    """Build the report of a release, with the checkpoints in the given order."""
    finding_reports = build_finding_reports(verdict)
    reports_by_path = {
        gate_input.path: _build_gated_checkpoint_report(gate_input, finding_reports)
        for gate_input in gate_inputs
    }
    reports_by_path |= {
        path: _build_unchecked_report(path, error) for path, error in errors.items()
    }
    checkpoints = tuple(reports_by_path[path] for path in dict.fromkeys(order))
    exit_code = ExitCode.COULD_NOT_CHECK if errors else verdict.exit_code
    return GateReport(
        command="gate",
        findings=finding_reports,
        silenced=build_silenced_reports(verdict),
        skipped=tuple(
            s
            for gate_input in gate_inputs
            for s in build_skipped_reports(gate_input.skipped, gate_input.path)
        ),
        exit_code=exit_code,
        verdict=_format_gate_verdict(
            checkpoints, finding_reports, len(verdict.silenced), exit_code
        ),
        checkpoints=checkpoints,
        policy=policy_source,
        notes=tuple(filter(None, map(_describe_judged_mapping, gate_inputs))),
        errors=tuple(errors.values()),
        error_paths=tuple(errors),
    )


def _describe_judged_mapping(gate_input: GateInput) -> str:
    """Return which mapping of the file was judged; "" if it is the only one, at the top level."""
    diff = gate_input.module_diff
    if diff is None:
        return ""
    other_places = [
        state.at or "."
        for state in diff.checkpoint.states
        if state.at != diff.state.at and state.role != "tensors"
    ]
    if not diff.state.at and not other_places:
        return ""
    others = f"; the file also has {join_limited(other_places, 3)}" if other_places else ""
    return f"{gate_input.path}: judged at `{diff.state.at or '.'}`{others}"


def build_policy_report(settings: Mapping[str, tuple[PolicySetting, ...]]) -> PolicyReport:
    """Build the report of the settings that apply to each path."""
    return PolicyReport(
        command="gate",
        findings=(),
        skipped=(),
        exit_code=ExitCode.PASSED,
        settings=tuple(
            SettingReport(name=setting.name, value=setting.value, origin=setting.origin, path=path)
            for path, path_settings in settings.items()
            for setting in path_settings
        ),
    )


def _build_gated_checkpoint_report(
    gate_input: GateInput, finding_reports: tuple[FindingReport, ...]
) -> GatedCheckpointReport:
    path_findings = [f for f in finding_reports if f.path == gate_input.path]
    failing_count = sum(f.fails for f in path_findings)
    outcome = "failed" if failing_count else "passed"
    diff, verification = gate_input.module_diff, gate_input.verification
    level_counts = count_problems(group_by_cause(path_findings))
    return GatedCheckpointReport(
        path=gate_input.path,
        verdict=f"{outcome}: {level_counts}" if level_counts else outcome,
        passed=not failing_count,
        container=str(gate_input.checkpoint.container) if gate_input.checkpoint else "",
        nbytes=gate_input.checkpoint.nbytes if gate_input.checkpoint else 0,
        module=diff.module.target if diff else "" if gate_input.checkpoint else gate_input.path,
        at=diff.state.at if diff else "",
        rules=gate_input.rules,
        levels=tuple(map(build_level_report, verification.levels)) if verification else (),
        promises=_build_promise_reports(gate_input.evidence),
        revision=gate_input.revision,
    )


def _build_unchecked_report(path: str, error: str) -> GatedCheckpointReport:
    reason = error.removeprefix(f"{path}: ")
    return GatedCheckpointReport(path=path, verdict=f"could not be checked: {reason}", passed=False)


def _format_gate_verdict(
    checkpoints: tuple[GatedCheckpointReport, ...],
    finding_reports: tuple[FindingReport, ...],
    silenced_count: int,
    exit_code: ExitCode,
) -> str:
    total = len(checkpoints)
    unchecked_count = sum(checkpoint.is_unchecked for checkpoint in checkpoints)
    failed_count = sum(not checkpoint.passed for checkpoint in checkpoints) - unchecked_count
    all_modules = (
        bool(checkpoints)
        and not unchecked_count
        and not any(checkpoint.container for checkpoint in checkpoints)
    )
    noun = "module" if all_modules else "checkpoint"
    is_single_module = total == 1 and all_modules
    subject = "the module" if is_single_module else pluralize(total, noun, "")
    silenced_text = (
        f", {pluralize(silenced_count, 'finding', '')} waived or in the baseline"
        if silenced_count
        else ""
    )
    if exit_code == ExitCode.PASSED:
        level_counts = count_problems(group_by_cause(finding_reports))
        return f"gate passed: {subject}{f', {level_counts}' if level_counts else ''}{silenced_text}"
    reasons = (
        [subject if is_single_module else f"{failed_count} of {subject}"] if failed_count else []
    )
    if any(f.fails and f.code in POLICY_ISSUE_CODES for f in finding_reports):
        reasons.append("the policy itself is out of date")
    paths = {checkpoint.path for checkpoint in checkpoints}
    if any(
        f.fails and f.path not in paths and f.code not in POLICY_ISSUE_CODES
        for f in finding_reports
    ):
        reasons.append("a requirement was not checked")
    if unchecked_count:
        reasons.append(f"{unchecked_count} of {subject} could not be checked")
    outcome = "failed" if failed_count or exit_code == ExitCode.FAILED else "could not check"
    return f"gate {outcome}: {', and '.join(reasons)}{silenced_text}"


def _build_promise_reports(evidence: GateEvidence) -> tuple[PromiseReport, ...]:
    """Build a report for each compatibility requirement, kept or not."""
    return tuple(_iter_promise_reports(evidence))


def _format_compatibility(diff: ContractDiff) -> str:
    """Return the word for two contracts; of two files, whose values are not compared, more."""
    if diff.remainder is not None and diff.remainder.changed:
        names = join_limited(diff.remainder.changed, _MAX_CHANGED, quote_code)
        return f"{diff.compatibility}; plain data differs: {names}"
    is_same_file = diff.remainder is not None and diff.compatibility is Compatibility.SAME
    return "the same keys, shapes and dtypes" if is_same_file else str(diff.compatibility)


_MAX_CHANGED: Final = 5


def _iter_promise_reports(evidence: GateEvidence) -> Iterator[PromiseReport]:
    if evidence.contract_diff is not None:
        yield PromiseReport(
            what="against",
            name=evidence.contract_diff.old.name,
            result=_format_compatibility(evidence.contract_diff),
        )
    for fixture in evidence.fixtures:
        route = fixture.route or "no migration path"
        yield PromiseReport(what="fixture", name=fixture.path, result=route, reason=fixture.reason)
    for replay in evidence.replays:
        results = [f"{drift.device}: drifts" for drift in replay.output_drifts]
        results += [f"{text.partition(':')[0]}: the same" for text in replay.matching_devices]
        descriptions = [f"{drift.device}: {drift.description}" for drift in replay.output_drifts]
        reason = "; ".join((*descriptions, *replay.matching_devices))
        if results:
            yield PromiseReport(
                what="golden", name=replay.golden, result=", ".join(results), reason=reason
            )

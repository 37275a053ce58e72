"""Release (checkpoints, modules) x Policy -> GateReport: pass or fail, with an exit code."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ckptool.commands.comparison.previews import add_module_diff_previews, add_state_previews
from ckptool.commands.gating.expectations import GateExpectations, list_unreplayed
from ckptool.commands.gating.named_checkpoints import (
    NamedCheckpoints,
    expand_paths,
    find_unmatched_entries,
    list_configured_checkpoints,
)
from ckptool.commands.sources.checkpoint_paths import PathLike, list_paths, require_local_path
from ckptool.commands.sources.module_choice import ModuleOptions, is_adapter_folder
from ckptool.commands.sources.option_checks import reject_unused_options
from ckptool.commands.worker.worker import get_worker
from ckptool.compare.module_diff import ModuleDiff
from ckptool.config import ProjectConfig, Waiver, load_config
from ckptool.errors import UsageError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.policy import Baseline, ExitCode, Policy, Verdict, judge
from ckptool.policy import baseline as baselines
from ckptool.policy.resolve import PolicyOptions, list_settings, resolve_policy
from ckptool.reports.gate import (
    GateInput,
    GateReport,
    PolicyReport,
    build_gate_report,
    build_policy_report,
)
from ckptool.rules import Finding, run_rules
from ckptool.rules.registry import codes_for_subjects
from ckptool.rules.release.policy_issues import POLICY_ISSUE_CODES, PolicyIssues
from ckptool.rules.release.requirements import ReleaseCandidate, select_required_codes

if TYPE_CHECKING:
    from torch import nn


from ckptool.commands.gating.gated_checkpoint import (
    CheckpointExaminer,
    GatedCheckpoint,
    collect_subjects,
)


def gate(  # noqa: PLR0913
    paths: PathLike | Sequence[PathLike] = (),
    *,
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    kwargs: Mapping[str, object] | None = None,
    fresh: "Callable[[], nn.Module] | None" = None,
    loader: str | None = None,
    base: PathLike | None = None,
    at: str | None = None,
    inputs: object = None,
    values: bool = True,
    against: "PathLike | nn.Module | None" = None,
    fixtures: Sequence[str | Path] = (),
    plans: Sequence[str | Path] = (),
    golden: Sequence[str | Path] = (),
    baseline: PathLike | None = None,
    update_baseline: bool = False,
    exit_zero: bool = False,
    modules_only: bool = False,
    policy: Policy | None = None,
    limits: Limits = DEFAULT_LIMITS,
    config: ProjectConfig | None = None,
    pictures: bool = False,
) -> GateReport:
    """Judge checkpoints by a policy; one that cannot be checked does not stop the others.

    Args:
        paths: the checkpoints of the release, patterns ("runs/*.pth") and folders of them; if
            empty, those that the configuration names; with `module`, that alone is checked against
            `against` and `fixtures`.
        module: "package.module:Name", a live module, or a class or function to call; None takes
            the configuration's for each path; where it has none, only the rules about files are
            run.
        kwargs: constructor arguments; for a live module, those it was built with.
        fresh: function that builds a module like a live one, if `kwargs` do not determine it.
        loader: framework whose loader loads it ("transformers", ...), or "torch" for
            load_state_dict; None selects it by the folder.
        base: folder of the model that an adapter is for; None for the one that it names.
        at: dotted place of the state in the files ("state_dict"); None takes the best match.
        inputs: arguments of forward, as for `verify`, for policies that require a verification.
        values: also apply the rules about values (CK4xx): this reads whole files.
        against: a lock, an older checkpoint, or an older module ("package.module:Name").
        fixtures: old checkpoints, or globs of them, that the module must load or migrate.
        plans: migration plans for the fixtures, in addition to the derived ones.
        golden: files of recorded outputs that the module must reproduce.
        baseline: file of known findings, which do not fail; None takes the configuration's.
        update_baseline: write all current findings into that file.
        modules_only: judge the configured modules and their locks, and no checkpoint.
        exit_zero: exit 0 if the gate failed; if something could not be checked, still exit 2.
        policy: None takes the configuration's.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.
        pictures: for a single checkpoint, read the values of small buffers, for drawing.

    Raises:
        ConfigError: the configuration or the baseline is invalid.
        UsageError: the options exclude each other, or the inputs are invalid.
        WriteError: the baseline cannot be written.
    """
    settings = load_config(Path.cwd()) if config is None else config
    gate_policy = replace(policy or resolve_policy(settings), gate=True)
    baseline_path = _find_baseline_file(baseline, settings, update=update_baseline)
    old_baseline = (
        None if baseline_path is None else _read_old_baseline(baseline_path, update=update_baseline)
    )
    given_paths = list_paths(paths)
    reject_unused_options(
        {"--modules-only": modules_only and bool(given_paths)}, "judges no checkpoint: name none"
    )
    is_module_alone = not given_paths and (modules_only or module is not None)
    named = _find_checkpoints(given_paths, settings, is_module_alone=is_module_alone)
    expectations = GateExpectations(
        against, tuple(fixtures), tuple(golden), tuple(plans), len(named.locations) > 1
    )
    _reject_plans_without_fixtures(expectations, settings)
    reject_unused_options(
        {"--base": base is not None and not any(map(is_adapter_folder, named.locations))},
        "is the base of an adapter, and no checkpoint is an adapter's folder",
    )
    module_options = ModuleOptions(module, kwargs, at, loader=loader, base=base, fresh=fresh)
    gated_checkpoints, errors = CheckpointExaminer(
        gate_policy,
        limits,
        settings,
        module_options,
        inputs,
        expectations,
        values,
        get_worker(),
        modules_only,
        named.folder_names,
    ).examine_all(named.locations, modules=not (named.locations or named.errors))
    errors |= named.errors
    if baseline_path is not None and update_baseline:
        old_baseline = _update_baseline(baseline_path, old_baseline, gated_checkpoints, gate_policy)
    issues = PolicyIssues(
        unmatched_entries=() if modules_only else find_unmatched_entries(settings, named.locations),
        unchecked=()
        if modules_only
        else list_unreplayed([checkpoint.evidence for checkpoint in gated_checkpoints]),
    )
    verdict = _judge_release(gated_checkpoints, gate_policy, old_baseline, issues)
    order = (*map(str, named.locations), *named.errors)
    order = order or (*(checkpoint.path for checkpoint in gated_checkpoints), *errors)
    gate_report = build_gate_report(
        [_build_gate_input(checkpoint, gate_policy) for checkpoint in gated_checkpoints],
        errors,
        order,
        verdict,
        gate_policy.source,
    )
    if pictures and len(gated_checkpoints) == 1:
        gate_report = _add_previews(gate_report, gated_checkpoints[0])
    is_failure_ignored = exit_zero and gate_report.exit_code == ExitCode.FAILED
    return replace(gate_report, exit_code=ExitCode.PASSED) if is_failure_ignored else gate_report


def _find_checkpoints(
    paths: Sequence[PathLike], config: ProjectConfig, *, is_module_alone: bool
) -> NamedCheckpoints:
    """Return the checkpoints that `paths` name, or without any those of the configuration."""
    if paths:
        return expand_paths(paths)
    return NamedCheckpoints(()) if is_module_alone else list_configured_checkpoints(config)


def _reject_plans_without_fixtures(expectations: GateExpectations, config: ProjectConfig) -> None:
    fixtures = expectations.fixtures or any(entry.fixtures for entry in config.settings.models)
    has_unused_plans = bool(expectations.plans) and not fixtures
    reject_unused_options(
        {"--plan": has_unused_plans}, "applies to old checkpoints: give them with --fixtures GLOB"
    )


def _build_gate_input(gated_checkpoint: GatedCheckpoint, policy: Policy) -> GateInput:
    chain = gated_checkpoint.chain
    return GateInput(
        path=gated_checkpoint.path,
        checkpoint=gated_checkpoint.checkpoint,
        module_diff=gated_checkpoint.module_diff,
        verification=gated_checkpoint.verification,
        skipped=gated_checkpoint.skipped,
        rules=_reported_codes(gated_checkpoint, policy),
        evidence=gated_checkpoint.evidence,
        revision=chain.revision.text if chain is not None and chain.revision is not None else "",
    )


def _add_previews(gate_report: GateReport, gated_checkpoint: GatedCheckpoint) -> GateReport:
    if gated_checkpoint.module_diff is not None:
        return add_module_diff_previews(gate_report, gated_checkpoint.module_diff)
    if gated_checkpoint.checkpoint is None or not gated_checkpoint.checkpoint.states:
        return gate_report
    return add_state_previews(gate_report, gated_checkpoint.checkpoint.states[0])


def effective_policy(
    paths: Sequence[PathLike], *, options: PolicyOptions, config: ProjectConfig
) -> PolicyReport:
    """Return the policy that applies to each of `paths`, with the origin of each setting.

    Raises:
        ConfigError: the configuration is invalid.
    """
    if not paths:
        return build_policy_report({"": list_settings(config, options, None)})
    return build_policy_report(
        {str(path): list_settings(config, options, str(path)) for path in paths}
    )


def _judge_release(
    gated_checkpoints: Sequence[GatedCheckpoint],
    policy: Policy,
    baseline: Baseline | None,
    issues: PolicyIssues,
) -> Verdict:
    """Return the verdict on all checkpoints, and on the policy, of which `issues` are known."""
    findings = [
        finding
        for checkpoint in gated_checkpoints
        for finding in _run_rules(checkpoint, policy, baseline)
    ]
    findings += run_rules([issues], policy.source)
    stale_entries = _find_stale_entries(
        judge(findings, policy, baseline=baseline), gated_checkpoints, policy, baseline
    )
    return judge([*findings, *run_rules([stale_entries], policy.source)], policy, baseline=baseline)


def _run_rules(
    gated_checkpoint: GatedCheckpoint, policy: Policy, baseline: Baseline | None
) -> Iterator[Finding]:
    findings = run_rules(collect_subjects(gated_checkpoint), gated_checkpoint.path)
    yield from findings
    unmatched_keys = (
        _find_unmatched_keys(
            gated_checkpoint.module_diff, judge(findings, policy, baseline=baseline)
        )
        if gated_checkpoint.module_diff
        else ()
    )
    yield from run_rules(
        _build_release(gated_checkpoint, policy, unmatched_keys), gated_checkpoint.path
    )


def _build_release(
    gated_checkpoint: GatedCheckpoint, policy: Policy, unmatched_keys: tuple[str, ...] = ()
) -> tuple[ReleaseCandidate, ...]:
    if gated_checkpoint.checkpoint is None:
        return ()
    require = policy.at(gated_checkpoint.path).require
    return (
        ReleaseCandidate(
            gated_checkpoint.checkpoint,
            require,
            gated_checkpoint.module_diff,
            unmatched_keys,
            gated_checkpoint.unloadable_place,
            gated_checkpoint.required_levels,
            gated_checkpoint.evidence.unchecked,
        ),
    )


def _applicable_codes(gated_checkpoint: GatedCheckpoint, policy: Policy) -> tuple[str, ...]:
    """Return the codes of all rules that apply and are reported, required by policy or not."""
    rule_subjects = (*collect_subjects(gated_checkpoint), *_build_release(gated_checkpoint, policy))
    return tuple(
        filter(policy.at(gated_checkpoint.path).reports, codes_for_subjects(rule_subjects))
    )


def _reported_codes(gated_checkpoint: GatedCheckpoint, policy: Policy) -> tuple[str, ...]:
    """Return the sorted codes of the rules that ran and are reported."""
    codes = set(codes_for_subjects(collect_subjects(gated_checkpoint)))
    codes.update(
        *(select_required_codes(release) for release in _build_release(gated_checkpoint, policy))
    )
    return tuple(sorted(filter(policy.at(gated_checkpoint.path).reports, codes)))


def _find_unmatched_keys(module_diff: ModuleDiff, verdict: Verdict) -> tuple[str, ...]:
    """Return keys that prevent a strict load and have neither a failing nor a silenced finding."""
    reported_keys: set[str] = set()
    failing_findings = [finding for finding in verdict.findings if finding.fails]
    for finding in (*failing_findings, *(entry.finding for entry in verdict.silenced)):
        reported_keys |= {finding.key, *finding.explained_keys}
    missing = [key for key in module_diff.missing_keys if key not in module_diff.retied_keys]
    keys = (
        *missing,
        *module_diff.unexpected_keys,
        *(change.key for change in module_diff.shape_mismatches),
        *module_diff.mistyped_keys,
    )
    return tuple(key for key in dict.fromkeys(keys) if key not in reported_keys)


def _find_stale_entries(
    verdict: Verdict,
    gated_checkpoints: Sequence[GatedCheckpoint],
    policy: Policy,
    baseline: Baseline | None,
) -> PolicyIssues:
    """Return expired, unused and vanished policy entries; rules that did not run do not count."""
    applicable_codes = {
        checkpoint.path: _applicable_codes(checkpoint, policy) for checkpoint in gated_checkpoints
    }
    checked_codes = {
        (policy.relative(path), code) for path, codes in applicable_codes.items() for code in codes
    }
    used_waivers = {entry.waiver for entry in verdict.silenced if entry.waiver}
    matched_findings = {
        baselines.to_baseline_entry(entry.finding, policy.relative(entry.finding.path))
        for entry in verdict.silenced
        if entry.by == "baseline"
    }
    vanished_findings = (baseline.entries if baseline else frozenset()) - matched_findings
    return PolicyIssues(
        expired_waivers=tuple(waiver for waiver in policy.waivers if policy.expired(waiver)),
        unused_waivers=tuple(
            waiver
            for waiver in policy.waivers
            if waiver not in used_waivers
            and not policy.expired(waiver)
            and _is_waiver_checked(waiver, applicable_codes, policy)
        ),
        outdated_entries=tuple(
            (known_finding.path, known_finding.rule, known_finding.key)
            for known_finding in sorted(vanished_findings)
            if (known_finding.path, known_finding.rule) in checked_codes
        ),
    )


def _is_waiver_checked(
    waiver: Waiver, applicable_codes: Mapping[str, Sequence[str]], policy: Policy
) -> bool:
    """Whether a rule that `waiver` covers ran on a checkpoint that it covers."""
    return any(
        policy.matching(waiver, path)
        and any(code.startswith(waiver.rule.upper()) for code in codes)
        for path, codes in applicable_codes.items()
    )


def _find_baseline_file(
    path: PathLike | None, config: ProjectConfig, *, update: bool
) -> Path | None:
    configured_path = config.settings.baseline
    if path is not None:
        return require_local_path(path)
    if configured_path is not None:
        return config.directory / configured_path
    if update:
        raise UsageError("--update-baseline needs --baseline FILE")
    return None


def _read_old_baseline(path: Path, *, update: bool) -> Baseline | None:
    """Return the baseline in `file`; None if it is to be created."""
    return None if update and not path.exists() else baselines.read_baseline(path)


def _update_baseline(
    path: Path,
    old_baseline: Baseline | None,
    gated_checkpoints: Sequence[GatedCheckpoint],
    policy: Policy,
) -> Baseline:
    """Write all current findings to the baseline, and keep those of paths not checked now."""
    from ckptool.formats.files.output_group import write_file

    checked_paths = {policy.relative(checkpoint.path) for checkpoint in gated_checkpoints}
    other_findings = {
        known_finding
        for known_finding in (old_baseline.entries if old_baseline else ())
        if known_finding.path not in checked_paths
    }
    verdict = _judge_release(gated_checkpoints, policy, None, PolicyIssues())
    new_findings = {
        baselines.to_baseline_entry(finding, policy.relative(finding.path))
        for finding in verdict.findings
        if finding.rule.code not in POLICY_ISSUE_CODES
    }
    write_file(path, baselines.format_baseline(other_findings | new_findings).encode(), force=True)
    return Baseline(frozenset(other_findings | new_findings))

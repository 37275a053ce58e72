"""Findings, Policy and Baseline -> Verdict."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from msgspec import Struct
from msgspec.structs import replace

from ckptool.config import Waiver
from ckptool.policy.baseline import Baseline
from ckptool.policy.policy import ExitCode, Policy
from ckptool.rules import Finding
from ckptool.rules.registry import sort_findings


class SilencedFinding(Struct, frozen=True):
    """A finding that a waiver or the baseline suppresses."""

    finding: Finding
    by: str
    """"waiver" or "baseline"."""
    reason: str
    waiver: Waiver | None = None


class Verdict(Struct, frozen=True):
    """Reported and silenced findings, and the exit code."""

    findings: tuple[Finding, ...]
    exit_code: ExitCode
    silenced: tuple[SilencedFinding, ...] = ()


def judge(
    findings: Iterable[Finding],
    policy: Policy,
    *,
    differs: bool = False,
    baseline: Baseline | None = None,
) -> Verdict:
    """Select the findings to report, set their levels and decide the exit code.

    A run fails if a finding has at least the level `fail_on`, or if `differs`; never if `fail_on`
    is None.

    Args:
        findings: of any number of checkpoints.
        policy: applied to each checkpoint with the overrides for its path.
        differs: whether two compared things differ; fails the run even without findings.
        baseline: known findings, which are silenced.
    """
    kept_findings: list[Finding] = []
    silenced: list[SilencedFinding] = []
    policies: dict[str, Policy] = {}
    for finding in findings:
        if finding.path not in policies:
            policies[finding.path] = policy.at(finding.path)
        path_policy = policies[finding.path]
        if not path_policy.reports(finding.rule.code):
            continue
        level = path_policy.level(finding)
        judged_finding = replace(finding, level=level, fails=path_policy.fails(level))
        silenced_finding = _silence_finding(judged_finding, policy, baseline)
        if silenced_finding is None:
            kept_findings.append(judged_finding)
        else:
            silenced.append(silenced_finding)
    has_failed = any(f.fails for f in kept_findings) or (differs and policy.fail_on is not None)
    exit_code = ExitCode.FAILED if has_failed else ExitCode.PASSED
    return Verdict(sort_findings(kept_findings), exit_code, tuple(silenced))


def _silence_finding(
    finding: Finding, policy: Policy, baseline: Baseline | None
) -> SilencedFinding | None:
    non_failing = replace(finding, fails=False)
    for waiver in policy.waivers:
        if _is_waived_by(waiver, finding, policy):
            return SilencedFinding(non_failing, "waiver", waiver.reason, waiver)
    if baseline is not None and baseline.contains_finding(finding, policy.relative(finding.path)):
        return SilencedFinding(non_failing, "baseline", "it is in the baseline", None)
    return None


def _is_waived_by(waiver: Waiver, finding: Finding, policy: Policy) -> bool:
    return (
        finding.rule.code.startswith(waiver.rule.upper())
        and _matches_key(waiver, finding)
        and policy.matching(waiver, finding.path)
        and not policy.expired(waiver)
    )


def _matches_key(waiver: Waiver, finding: Finding) -> bool:
    """Whether a waiver is for the finding's key; a global is accepted by its exact name only."""
    if finding.rule.is_accepted_by_name:
        return waiver.key == finding.key
    return waiver.key == "*" or fnmatchcase(finding.key, waiver.key)

"""Findings, Policy and Baseline -> Verdict."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from msgspec import Struct
from msgspec.structs import replace

from ckptool.config import Waiver
from ckptool.policy.baseline import Baseline
from ckptool.policy.terms import ExitCode, Policy
from ckptool.rules import Finding
from ckptool.rules.registry import in_order


class Silenced(Struct, frozen=True):
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
    silenced: tuple[Silenced, ...] = ()


def judge(
    findings: Iterable[Finding],
    policy: Policy,
    *,
    differs: bool = False,
    known: Baseline | None = None,
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
    kept: list[Finding] = []
    silenced: list[Silenced] = []
    scoped: dict[str, Policy] = {}
    for finding in findings:
        if finding.path not in scoped:
            scoped[finding.path] = policy.at(finding.path)
        here = scoped[finding.path]
        if not here.reports(finding.rule.code):
            continue
        level = here.level(finding)
        one = replace(finding, level=level, fails=here.fails(level))
        why = _silence(one, policy, known)
        if why is None:
            kept.append(one)
        else:
            silenced.append(why)
    failed = any(f.fails for f in kept) or (differs and policy.fail_on is not None)
    code = ExitCode.FAILED if failed else ExitCode.PASSED
    return Verdict(in_order(kept), code, tuple(silenced))


def _silence(finding: Finding, policy: Policy, known: Baseline | None) -> Silenced | None:
    quiet = replace(finding, fails=False)
    for waiver in policy.waivers:
        if _waives(waiver, finding, policy):
            return Silenced(quiet, "waiver", waiver.reason, waiver)
    if known is not None and known.has(finding, policy.relative(finding.path)):
        return Silenced(quiet, "baseline", "it was there before", None)
    return None


def _waives(waiver: Waiver, finding: Finding, policy: Policy) -> bool:
    return (
        finding.rule.code.startswith(waiver.rule.upper())
        and (waiver.key == "*" or fnmatchcase(finding.key, waiver.key))
        and policy.matching(waiver, finding.path)
        and not policy.expired(waiver)
    )

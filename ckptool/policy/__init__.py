"""Findings and a Policy -> Verdict: the only package that decides whether a run fails."""

from ckptool.config import Waiver
from ckptool.policy.baseline import Baseline, BaselineEntry
from ckptool.policy.judge import SilencedFinding, Verdict, judge
from ckptool.policy.policy import LEVELS, ExitCode, Policy, resolve_rule_codes

__all__ = [
    "LEVELS",
    "Baseline",
    "BaselineEntry",
    "ExitCode",
    "Policy",
    "SilencedFinding",
    "Verdict",
    "Waiver",
    "judge",
    "resolve_rule_codes",
]

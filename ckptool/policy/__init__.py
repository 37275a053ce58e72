"""Findings and a Policy -> Verdict: the only package that decides whether a run fails."""

from ckptool.config import Waiver
from ckptool.policy.baseline import Baseline, Known
from ckptool.policy.judging import Silenced, Verdict, judge
from ckptool.policy.terms import LEVELS, ExitCode, Policy, known_codes

__all__ = [
    "LEVELS",
    "Baseline",
    "ExitCode",
    "Known",
    "Policy",
    "Silenced",
    "Verdict",
    "Waiver",
    "judge",
    "known_codes",
]

"""PlanOutcome: what a plan makes of a state_dict, for those who may refuse it."""

from dataclasses import dataclass

from ckptool.compare.module_diff import ModuleDiff
from ckptool.migration.plan.plan_file import Plan


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """What a plan makes of the source's state_dict, compared with the module."""

    plan: Plan
    is_derived: bool
    """Whether the plan was derived; else a plan file decided every step."""
    source_diff: ModuleDiff
    result_diff: ModuleDiff

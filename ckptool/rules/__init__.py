"""Rules and the checks that find their violations. Importing this package registers them all."""

from ckptool.rules import (  # noqa: F401 (each registers its rules)
    container,
    contract,
    forms,
    keys,
    loading,
    module_state,
    optimizer,
    quantisation,
    refusals,
    related,
    requirements,
    sharing,
    training,
    values,
    verification,
)
from ckptool.rules.registry import RULES, Finding, Level, Rule, run

__all__ = ["RULES", "Finding", "Level", "Rule", "run"]

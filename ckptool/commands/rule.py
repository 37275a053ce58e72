"""Rule code -> RuleReport."""

from ckptool.policy import resolve_rule_codes
from ckptool.reports.rule import RuleReport
from ckptool.rules import RULES


def rule(code: str | None = None) -> tuple[RuleReport, ...]:
    """Return the documentation of rule `code`, of a family ("CK2"), or of all rules, by code.

    Raises:
        UsageError: the code does not exist.
    """
    codes = resolve_rule_codes(code) if code else tuple(RULES)
    return tuple(
        RuleReport(
            code=r.code,
            name=r.name,
            level=r.level.word,
            why=r.why,
            fix=r.general_fix,
            message=r.general_message,
            example=r.example,
            gate=r.gate.word if r.gate is not None else "",
        )
        for r in sorted((RULES[c] for c in codes), key=lambda r: r.code)
    )

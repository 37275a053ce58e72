"""Findings of a plan's source and result -> PlanError, unless the user answered them."""

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ckptool.compare.module_diff import ModuleDiff
from ckptool.errors import PlanError
from ckptool.locations import Location
from ckptool.migration.plan.key_operations import InjectTensor
from ckptool.policy import Policy, judge
from ckptool.rules import Finding, Level
from ckptool.rules.causes import attribute_findings
from ckptool.rules.fixes.commands import advise_ignoring

if TYPE_CHECKING:
    from ckptool.migration.check.plan_outcome import PlanOutcome
    from ckptool.migration.plan.plan_file import Plan


def refuse_errors(
    source: Location,
    policy: Policy,
    asked_keys: set[str],
    find_findings: Callable[[ModuleDiff], tuple[Finding, ...]],
    outcome: "PlanOutcome",
) -> None:
    """Refuse a plan that covers up an error of the source, or whose result has one.

    What the user asked for by key, with --inject, --drop or a plan file, is reported only. A result
    that does not load strictly is left to the strict load of the written file.

    Raises:
        PlanError: a rule says that there is an error.
    """
    if outcome.is_derived:
        assumed_keys = {
            op.key
            for op in outcome.plan.ops
            if isinstance(op, InjectTensor)
            and op.source == "constructor"
            and not _names_key(asked_keys, op.key)
        }
        source_errors = (
            _select_errors(find_findings(outcome.source_diff), policy) if assumed_keys else []
        )
        for finding in source_errors:
            covered_keys = sorted(assumed_keys & {finding.key, *finding.explained_keys})
            if covered_keys:
                key = covered_keys[0]
                way_out = f"--inject {key}=constructor takes the constructor's value anyway"
                raise PlanError(_format_refusal(source, finding, way_out))
    else:
        asked_keys = asked_keys | {*_iter_named_keys(outcome.plan)}
    if not outcome.result_diff.is_strict:
        return
    errors = [
        finding
        for finding in _select_errors(find_findings(outcome.result_diff), policy)
        if not _names_key(asked_keys, finding.key)
    ]
    if errors:
        raise PlanError(_format_result_refusal(source, errors))


def _select_errors(findings: Iterable[Finding], policy: Policy) -> list[Finding]:
    judged = judge(findings, policy).findings
    return [finding for finding in judged if finding.level is Level.ERROR]


def _format_refusal(source: Location, finding: Finding, way_out: str) -> str:
    fix = finding.fix.rstrip(".")
    return f"{source}: not migrated: {finding.summary} ({finding.rule.code}). {fix}; or {way_out}"


def _format_result_refusal(source: Location, errors: list[Finding]) -> str:
    """Return the first cause among the errors, and the options that accept all of them at once."""
    first = next(
        finding
        for finding, attribution in zip(errors, attribute_findings(errors), strict=True)
        if not attribution.is_consequence
    )
    codes = dict.fromkeys((first.rule.code, *(finding.rule.code for finding in errors)))
    fix = first.fix.removesuffix(advise_ignoring(first.rule.code))
    return (
        f"{source}: not migrated: {first.summary} ({first.rule.code}). {fix}"
        f"{advise_ignoring(*codes).removesuffix('.')}"
    )


def _iter_named_keys(plan: "Plan") -> Iterator[str]:
    """Yield the keys and patterns that the steps of a plan name."""
    for op in plan.ops:
        for field in op.__struct_fields__:
            value = getattr(op, field)
            if field in {"key", "to", "into"} and isinstance(value, str):
                yield value
            elif field in {"into", "keys"} and isinstance(value, tuple):
                yield from value


def _names_key(patterns: set[str], key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)

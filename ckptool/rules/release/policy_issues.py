"""PolicyIssues -> hits: entries of a policy that are out of date (CK328, CK857-CK859)."""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from ckptool.config import Waiver
from ckptool.model import (
    Skipped,
)
from ckptool.rules.fixes.commands import (
    format_repeated_command,
)
from ckptool.rules.registry import (
    Level,
    Rule,
    RuleHit,
    check,
    hit,
)

POLICY_ISSUE_CODES: Final = frozenset({"CK328", "CK857", "CK858", "CK859"})
"""Codes of the rules that concern the policy and no checkpoint."""


class UnmatchedEntry(Struct, frozen=True):
    """An entry of `[[models]]` or `[[paths]]` that applies to no checkpoint."""

    table: str
    """"models" or "paths"."""
    pattern: str
    reason: str


class PolicyIssues(Struct, frozen=True):
    """Entries of a policy and its baseline that are out of date, or that nothing checked."""

    expired_waivers: tuple[Waiver, ...] = ()
    unused_waivers: tuple[Waiver, ...] = ()
    outdated_entries: tuple[tuple[str, str, str], ...] = ()
    """Path, code and key of baseline entries that match no finding any more."""
    unmatched_entries: tuple[UnmatchedEntry, ...] = ()
    unchecked: tuple[Skipped, ...] = ()
    """What the whole release had to be held to, and nothing of it could be."""


@check(
    PolicyIssues,
    Rule(
        code="CK328",
        name="entry-without-checkpoint",
        level=Level.ERROR,
        summary="`{key}` in [[{table}]] applies to no checkpoint",
        detail="{reason}",
        why=(
            "What the entry asks for is not checked: a typo in `path` would let every release pass."
        ),
        fix=(
            "Correct `path`, delete the entry, or waive it with a reason; to check modules without "
            "weights: ckptool gate --modules-only"
        ),
        example='# path = "releese/*" in [[models]]\nckptool.gate()',
    ),
)
def find_unmatched_entries(issues: PolicyIssues) -> Iterator[RuleHit]:
    for entry in issues.unmatched_entries:
        yield hit(entry.pattern, table=entry.table, reason=entry.reason)


@check(
    PolicyIssues,
    Rule(
        code="CK857",
        name="waiver-expired",
        level=Level.ERROR,
        summary="the waiver for {key} (keys: {keys}; files: {path}) expired on {expires}",
        detail="reason given: {reason}",
        why="An expiry date means that somebody must review the waiver.",
        fix="Fix what it waives and delete it, or give it a new date.",
        example='# expires = 2020-12-31\nckptool.gate("model.pth")',
    ),
)
def find_expired_waivers(issues: PolicyIssues) -> Iterator[RuleHit]:
    for waiver in issues.expired_waivers:
        yield hit(
            waiver.rule,
            keys=waiver.key,
            path=waiver.path,
            expires=str(waiver.expires),
            reason=f'"{waiver.reason}"',
        )


@check(
    PolicyIssues,
    Rule(
        code="CK858",
        name="waiver-unused",
        level=Level.NOTE,
        summary="the waiver for {key} (keys: {keys}; files: {path}) no longer matches any finding",
        why="An unused waiver would hide the next finding of the same kind.",
        fix="Delete the waiver.",
        example='# rule = "CK301", and no pickle is left\nckptool.gate("model.safetensors")',
    ),
)
def find_unused_waivers(issues: PolicyIssues) -> Iterator[RuleHit]:
    for waiver in issues.unused_waivers:
        yield hit(waiver.rule, keys=waiver.key, path=waiver.path)


@check(
    PolicyIssues,
    Rule(
        code="CK859",
        name="baseline-outdated",
        level=Level.NOTE,
        summary="the baseline lists {what} in {path}, which is no longer reported",
        why="A fixed finding that stays in the baseline would not be reported if it came back.",
        fix="{command}",
        general_command="the same `ckptool gate` with --update-baseline",
        example=(
            "# known.json lists CK301 of model.pth, which was saved again without the pickle\n"
            'ckptool.gate("model.pth", baseline="known.json")'
        ),
    ),
)
def find_outdated_baseline_entries(issues: PolicyIssues) -> Iterator[RuleHit]:
    command = format_repeated_command("--update-baseline")
    command = command or "ckptool gate with the same options and --update-baseline"
    for path, code, key in issues.outdated_entries:
        yield hit(key, what=f"{code} of `{key}`" if key else code, path=path, command=command)

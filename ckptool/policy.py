"""Findings + a policy -> a verdict: the only place that decides whether a run fails."""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum

from msgspec import Struct

from ckptool.errors import UsageError
from ckptool.rules import RULES, Finding, Level


class ExitCode(IntEnum):
    PASSED = 0
    FAILED = 1
    COULD_NOT_CHECK = 2


class Policy(Struct, frozen=True):
    """Which findings count, and from which level on they fail a run."""

    select: tuple[str, ...] = ()
    """Codes or families ("CK2") that are reported; () is all."""
    ignore: tuple[str, ...] = ()
    """Codes or families that are not."""
    fail_on: Level | None = Level.ERROR
    """The least level that fails; None is never."""

    def __post_init__(self) -> None:
        for code in (*self.select, *self.ignore):
            known_codes(code)

    def reports(self, code: str) -> bool:
        """Whether findings of `code` are reported: the longer match wins, and a tie is ignored."""
        chosen = max((len(s) for s in self.select if code.startswith(s.upper())), default=0)
        dropped = max((len(s) for s in self.ignore if code.startswith(s.upper())), default=0)
        return (chosen > 0 or not self.select) and (dropped == 0 or chosen > dropped)


class Verdict(Struct, frozen=True):
    """What was found and whether it fails the run."""

    findings: tuple[Finding, ...]
    exit_code: ExitCode


def judge(findings: Iterable[Finding], policy: Policy, *, differs: bool = False) -> Verdict:
    """Keep what the policy reports; fail at its level or where `differs`, unless it never fails."""
    kept = tuple(f for f in findings if policy.reports(f.rule.code))
    if policy.fail_on is None:
        return Verdict(kept, ExitCode.PASSED)
    failed = differs or any(f.level >= policy.fail_on for f in kept)
    return Verdict(kept, ExitCode.FAILED if failed else ExitCode.PASSED)


def known_codes(text: str) -> tuple[str, ...]:
    """Return the codes that `text`, a code or the beginning of codes, stands for.

    Raises:
        UsageError: there is no such code.
    """
    codes = tuple(code for code in RULES if text and code.startswith(text.upper()))
    if not codes:
        close = get_close_matches(text.upper(), RULES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"no rule is called {text!r}{hint} (`ckptool rule` lists them all)")
    return codes

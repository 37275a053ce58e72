"""Registry of rules: a `Rule` is data, its check is a generator over one subject."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Any, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import natural

S = TypeVar("S")


class Level(IntEnum):
    """Severity of a finding: SARIF's levels, ordered."""

    NOTE = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        return self.name.lower()


class Rule(Struct, frozen=True):
    """Definition of one kind of problem. `code` keeps its meaning for ever."""

    code: str
    name: str
    level: Level
    """Default level; `RuleHit.level` overrides it where the facts decide."""
    message: str
    """Format string over `key` and the facts of a `RuleHit`."""
    why: str
    """Why it matters, for readers to whom the problem is new."""
    fix: str
    """Remedy: a command or a line of code; a format string over the same facts as `message`."""
    example: str = ""
    """A few lines of Python for which the rule fires; "" if there is none."""
    gate: Level | None = None
    """Level in `ckptool gate`; None means `level`."""


class Hit(Struct, frozen=True):
    """Result of a check: the key and the facts that fill the rule's message."""

    key: str
    facts: Mapping[str, object] = {}
    level: Level | None = None


def hit(key: str, level: Level | None = None, /, **facts: object) -> Hit:
    """Return a `RuleHit` with the facts passed as keywords; level None is the rule's default."""
    return Hit(key, facts, level)


class Finding(Struct, frozen=True):
    """A rule's hit on one key, with its level decided."""

    rule: Rule
    key: str
    facts: Mapping[str, object]
    level: Level
    path: str = ""
    """Path of the checkpoint; "" if the finding concerns a module alone."""
    fails: bool = False
    """Whether the policy fails the run because of this finding."""

    @property
    def where(self) -> str:
        """Source location "file.py:line" of the finding, "" if it has none."""
        place = str(self.facts.get("where", ""))
        return place if _PLACE.fullmatch(place) else ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (first 32 hex digits) of code, key and facts.

        Independent of the folders of checkpoint and source, and of line numbers.
        """
        from hashlib import sha256

        facts = (f"{name}={self._stable(name)}" for name in sorted(self.facts))
        whole = "\n".join((self.rule.code, self.key, *facts))
        return sha256(whole.encode(errors="surrogatepass")).hexdigest()[:32]

    def _stable(self, name: str) -> str:
        """Return a fact as text without folders, line numbers and the checkpoint's path."""
        text = str(self.facts[name])
        if name == "path" and text == self.path:
            return ""
        if _PLACE.fullmatch(text):
            text = text.rpartition("/")[2]
        return _LINE.sub("", text)

    @property
    def message(self) -> str:
        return self.rule.message.format(key=self.key, **self.facts)

    @property
    def fix(self) -> str:
        return self.rule.fix.format(key=self.key, **self.facts)


_PLACE: Final = re.compile(r".+\.py:[0-9]+")
_LINE: Final = re.compile(r"(?<=\.py):[0-9]+")

Check = Callable[[Any], Iterator[Hit]]
RULES: dict[str, Rule] = {}
_CHECKS: list[tuple[type, Rule, Check]] = []


def check(subject: type[S], rule: Rule) -> Callable[[Callable[[S], Iterator[Hit]]], Check]:
    """Register `rule` with the decorated generator, which finds its hits in a `subject`.

    Raises:
        ValueError: a rule with this code is registered already.
    """
    if rule.code in RULES:
        raise ValueError(f"{rule.code} is registered twice")
    RULES[rule.code] = rule

    def register(function: Callable[[S], Iterator[Hit]]) -> Check:
        _CHECKS.append((subject, rule, function))
        return function

    return register


def also(
    subject: type[S], code: str, *, message: str = "", fix: str = ""
) -> Callable[[Callable[[S], Iterator[Hit]]], Check]:
    """Register a further generator for the rule `code`, over another type of subject.

    Args:
        subject: type that the generator takes.
        code: code of a rule that is registered already.
        message: replaces the rule's message where the facts differ; "" keeps it.
        fix: replaces the rule's fix; "" keeps it.

    Raises:
        KeyError: no rule has this code.
    """
    known = RULES[code]
    rule = replace(known, message=message or known.message, fix=fix or known.fix)

    def register(function: Callable[[S], Iterator[Hit]]) -> Check:
        _CHECKS.append((subject, rule, function))
        return function

    return register


def run(subjects: Iterable[object], path: object = "") -> tuple[Finding, ...]:
    """Run all checks over `subjects` and return their findings, sorted by `sort_findings`.

    Args:
        subjects: a subject is passed to every check registered for its type.
        path: the checkpoint that the findings concern; "" if none.
    """
    found = [
        Finding(rule, one.key, one.facts, one.level or rule.level, str(path))
        for subject in subjects
        for kind, rule, function in _CHECKS
        if isinstance(subject, kind)
        for one in function(subject)
    ]
    return in_order(found)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort by level (errors first), then code, then key in natural order; the sort is stable."""
    return tuple(sorted(findings, key=lambda f: (-f.level, f.rule.code, natural(f.key))))


def checked(subjects: Iterable[object]) -> frozenset[str]:
    """Return the codes of all rules with a check for the type of any of `subjects`."""
    given = tuple(subjects)
    return frozenset(
        rule.code for kind, rule, _ in _CHECKS if any(isinstance(s, kind) for s in given)
    )

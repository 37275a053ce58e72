"""The registry of rules: a rule is data, its check is a generator over one subject."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Any, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import natural

S = TypeVar("S")


class Level(IntEnum):
    """SARIF's levels, ordered."""

    NOTE = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        return self.name.lower()


class Rule(Struct, frozen=True):
    """One thing that can be wrong. `code` keeps its meaning for ever."""

    code: str
    name: str
    level: Level
    """The default; a hit may carry another where the facts decide."""
    message: str
    """Format string over a hit's facts, and `key`."""
    why: str
    """Why it matters, for somebody who has never met it."""
    fix: str
    """What to do about it: a command or a line of code; may use the same facts as `message`."""
    example: str = ""
    """A few lines of Python in which it fires."""
    gate: Level | None = None
    """Level in `ckptool gate`."""


class Hit(Struct, frozen=True):
    """What a check found: facts, no sentence."""

    key: str
    facts: Mapping[str, object] = {}
    level: Level | None = None


def hit(key: str, level: Level | None = None, /, **facts: object) -> Hit:
    """Return a Hit with its facts given by name."""
    return Hit(key, facts, level)


class Finding(Struct, frozen=True):
    """A hit of a rule, with its level decided."""

    rule: Rule
    key: str
    facts: Mapping[str, object]
    level: Level
    path: str = ""
    """The checkpoint that it is about, "" where it is about a module alone."""
    fails: bool = False
    """Whether the policy fails the run for it."""

    @property
    def where(self) -> str:
        """Return the "file:line" that it is about, "" where there is none."""
        place = str(self.facts.get("where", ""))
        return place if _PLACE.fullmatch(place) else ""

    @property
    def fingerprint(self) -> str:
        """Return a digest of what was found, the same wherever checkpoint and source lie."""
        from hashlib import sha256

        facts = (f"{name}={self._stable(name)}" for name in sorted(self.facts))
        whole = "\n".join((self.rule.code, self.key, *facts))
        return sha256(whole.encode(errors="surrogatepass")).hexdigest()[:32]

    def _stable(self, name: str) -> str:
        """Return a fact without what another machine, or a moved line of source, changes of it."""
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
    """Register `rule` with the generator that finds it in a `subject`."""
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
    """Register a further generator that finds the rule `code`, in another kind of subject.

    Args:
        subject: what the generator looks at.
        code: of a rule that is registered already.
        message: what it says there, where the facts are others; "" is the rule's own.
        fix: the same.
    """
    known = RULES[code]
    rule = replace(known, message=message or known.message, fix=fix or known.fix)

    def register(function: Callable[[S], Iterator[Hit]]) -> Check:
        _CHECKS.append((subject, rule, function))
        return function

    return register


def run(subjects: Iterable[object], path: object = "") -> tuple[Finding, ...]:
    """Return what all rules find in `subjects`: by level, gravest first, then code, then key.

    Args:
        subjects: what is looked at.
        path: of the checkpoint that they are about.
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
    """Return findings as they are shown: by level, then code, then key; else as they came."""
    return tuple(sorted(findings, key=lambda f: (-f.level, f.rule.code, natural(f.key))))


def checked(subjects: Iterable[object]) -> frozenset[str]:
    """Return the codes of the rules that look at any of `subjects`."""
    given = tuple(subjects)
    return frozenset(
        rule.code for kind, rule, _ in _CHECKS if any(isinstance(s, kind) for s in given)
    )

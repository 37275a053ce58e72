"""Registry of rules: a `Rule` is data, its check is a generator over one subject."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import IntEnum, StrEnum
from typing import Any, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import natural_sort_key
from ckptool.phrases import MAX_KEY_CHARS, cut_middle, quote_path, quote_python, quote_shell

S = TypeVar("S")


class Level(IntEnum):
    """Severity of a finding: SARIF's levels, ordered."""

    NOTE = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        return self.name.lower()


class RuleFamily(StrEnum):
    """Subject of a group of rules; the value is how their codes begin."""

    MODULE_STATE = "CK1"
    LOADING = "CK2"
    CONTAINER = "CK3"
    VALUES = "CK4"
    SHARING = "CK5"
    SHARDS = "CK6"
    WAYS_OF_LOADING = "CK7"
    RELEASE = "CK8"
    OPTIMIZER = "CK9"


class Rule(Struct, frozen=True):
    """Definition of one kind of problem. `code` keeps its meaning for ever."""

    code: str
    name: str
    level: Level
    """Default level; `RuleHit.level` overrides it where the facts decide."""
    summary: str
    """Short clause, also for verdicts; a format string over `key` and the facts of a `RuleHit`."""
    why: str
    """Why it matters, for readers to whom the problem is new."""
    fix: str
    """Remedy: a command or a line of code; a format string over the same facts as `message`.

    What comes from a file is quoted: `{key:py}` in Python code, `{key:sh}` in a command."""
    general_advice: str = ""
    """The remedy in general, if `fix` is a fact alone; "" shows `fix` itself."""
    general_summary: str = ""
    """The message in general, if its clauses are facts; "" shows `message` itself."""
    general_command: str = ""
    """What stands for {command} in the remedy in general; "" if `fix` has none."""
    detail: str = ""
    """Continuation of the summary after a colon; a format string over the same facts."""
    example: str = ""
    """A few lines of Python for which the rule fires; "" if there is none."""
    gate: Level | None = None
    """Level in `ckptool gate`; None means `level`."""
    is_accepted_by_name: bool = False
    """Whether the key is a global of a pickle: a policy accepts it by its exact name only."""
    explains_key: bool = False
    """Whether a hit explains why its key is missing or unexpected; always in the family LOADING."""

    @property
    def message(self) -> str:
        return f"{self.summary}: {self.detail}" if self.detail else self.summary

    @property
    def general_fix(self) -> str:
        """The fix without facts, as a page on the rule shows it: `state_dict["KEY"]`."""
        fix = self.fix.replace("{command}", self.general_command or "{command}")
        return self.general_advice or _name_fields(fix)

    @property
    def general_message(self) -> str:
        """The message without facts: `KEY` is not in the file."""
        return _name_fields(self.general_summary or self.message)

    @property
    def family(self) -> RuleFamily:
        return RuleFamily(self.code[:3])


def _name_fields(template: str) -> str:
    """Return a format string with the names of its fields in capitals, quoted in Python code.

    A field right behind a word, a full stop or another field is a clause that only some findings
    have: it is left out.
    """
    text = re.sub(r"(?<=[\w}.])\{\w+\}", "", template)
    text = re.sub(r"\{(\w+):py\}", lambda match: f'"{match[1].upper()}"', text)
    text = re.sub(r"\{(\w+)(?:[:!][^{}]*)?\}", lambda match: match[1].upper(), text)
    return text.replace("{{", "{").replace("}}", "}")


class RuleHit(Struct, frozen=True):
    """Result of a check: the key and the facts that fill the rule's message."""

    key: str
    facts: Mapping[str, object] = {}
    level: Level | None = None
    explained_keys: Collection[str] = ()
    """All keys that this one problem makes missing or unexpected."""


def hit(
    key: str, level: Level | None = None, explained_keys: Collection[str] = (), /, **facts: object
) -> RuleHit:
    """Return a `RuleHit` with the facts passed as keywords; level None is the rule's default."""
    return RuleHit(key, facts, level, explained_keys)


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
    explained_keys: Collection[str] = ()
    """Keys, besides `key`, that this one problem makes missing or unexpected."""

    @property
    def where(self) -> str:
        """Source location "file.py:line" of the finding, "" if it has none."""
        location = str(self.facts.get("where", ""))
        return location if _LOCATION_PATTERN.fullmatch(location) else ""

    @property
    def defined_at(self) -> str:
        """Location "file.py:line" that assigns what the finding is about, "" if not known."""
        location = str(self.facts.get("defined_at", self.facts.get("where", "")))
        return location if _LOCATION_PATTERN.fullmatch(location) else ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (first 32 hex digits) of code, key and facts, without those for the fix.

        Independent of the folders of checkpoint and source, and of line numbers.
        """
        from hashlib import sha256

        shown_names = _FIELD_PATTERN.findall(self.rule.message)
        names = sorted(self.facts.keys() - (_FIX_FACTS - {*shown_names}))
        facts = (f"{name}={self._format_stable_fact(name)}" for name in names)
        content = "\n".join((self.rule.code, self.key, *facts))
        return sha256(content.encode(errors="surrogatepass")).hexdigest()[:32]

    def _format_stable_fact(self, name: str) -> str:
        """Return a fact as text without folders, line numbers and the checkpoint's path."""
        text = str(self.facts[name])
        if _LOCATION_PATTERN.fullmatch(text):
            text = text.rpartition("/")[2]
        return _LINE_PATTERN.sub("", _FOLDER_PATTERN.sub("", text))

    @property
    def message(self) -> str:
        return self._fill_template(self.rule.message)

    @property
    def summary(self) -> str:
        return self._fill_template(self.rule.summary)

    @property
    def fix(self) -> str:
        return self._fill_template(self.rule.fix)

    def _fill_template(self, template: str) -> str:
        return fill_template(template, self.key, self.facts)


def fill_template(template: str, key: str, facts: Mapping[str, object]) -> str:
    """Return a format string over `key` and facts, filled: `{x:py}` and `{x:sh}` are quoted."""
    texts = {name: _FactText(fact) if type(fact) is str else fact for name, fact in facts.items()}
    return template.format(key=_KeyText(key), **texts)


class _FactText(str):
    """Text in a template: `{x}` as it is, `{x:py}` as a Python string, `{x:sh}` as a shell word."""

    __slots__ = ()
    max_chars = 2000

    def __format__(self, format_spec: str) -> str:
        text = cut_middle(str(self), self.max_chars)
        match format_spec:
            case "py":
                return quote_python(text)
            case "sh":
                return quote_shell(text)
            case "path":
                return quote_path(text)
            case _:
                return format(text, format_spec)


class _KeyText(_FactText):
    """Key in a template."""

    __slots__ = ()
    max_chars = MAX_KEY_CHARS


_FIELD_PATTERN: Final = re.compile(r"\{(\w+)\}")
"""A fact in a template of a rule."""
_FIX_FACTS: Final = frozenset(
    {
        *("advice", "code", "command", "path", "remedy"),
        *("defined_at", "plan", "subtree"),
    }
)
"""Names of facts that say what to do about a finding, or which findings have one cause."""
_LOCATION_PATTERN: Final = re.compile(r".+\.py:[0-9]+")
_FOLDER_PATTERN: Final = re.compile(r"(?<=\()[^()\s]*/(?=[^()\s/]+\.py:[0-9]+\))")
"""Folder of a "(file.py:line)" within a sentence."""
_LINE_PATTERN: Final = re.compile(r"(?<=\.py):[0-9]+")

MIGRATE: Final = "ckptool migrate FILE -o NEW -m MODULE"
CONVERT: Final = "ckptool convert FILE -o NEW"
"""Commands in remedies, where no finding says for which file."""

CheckFunction = Callable[[Any], Iterator[RuleHit]]
RULES: dict[str, Rule] = {}
_CHECKS: list[tuple[type, Rule, CheckFunction]] = []


def check(
    subject: type[S], rule: Rule
) -> Callable[[Callable[[S], Iterator[RuleHit]]], CheckFunction]:
    """Register `rule` with the decorated generator, which finds its hits in a `subject`.

    Raises:
        ValueError: a rule with this code is registered already.
    """
    if rule.code in RULES:
        raise ValueError(f"{rule.code} is registered twice")
    RULES[rule.code] = rule

    def register(function: Callable[[S], Iterator[RuleHit]]) -> CheckFunction:
        _CHECKS.append((subject, rule, function))
        return function

    return register


def check_other_subject(
    subject: type[S], code: str, *, summary: str = "", detail: str = "", fix: str = ""
) -> Callable[[Callable[[S], Iterator[RuleHit]]], CheckFunction]:
    """Register a further generator for the rule `code`, over another type of subject.

    Args:
        subject: type that the generator takes.
        code: code of a rule that is registered already.
        summary: replaces the rule's summary where the facts differ; "" keeps it and `detail`.
        detail: continues the new `summary`; "" if nothing follows it.
        fix: replaces the rule's fix; "" keeps it.

    Raises:
        KeyError: no rule has this code.
    """
    registered_rule = RULES[code]
    rule = replace(registered_rule, fix=fix or registered_rule.fix)
    if summary:
        rule = replace(rule, summary=summary, detail=detail)

    def register(function: Callable[[S], Iterator[RuleHit]]) -> CheckFunction:
        _CHECKS.append((subject, rule, function))
        return function

    return register


def run_rules(subjects: Iterable[object], path: object = "") -> tuple[Finding, ...]:
    """Run all checks over `subjects` and return their findings, sorted by `sort_findings`.

    Args:
        subjects: a subject is passed to every check registered for its type.
        path: the checkpoint that the findings concern; "" if none.
    """
    findings = [
        Finding(
            rule,
            rule_hit.key,
            rule_hit.facts,
            rule_hit.level or rule.level,
            str(path),
            explained_keys=rule_hit.explained_keys,
        )
        for subject in subjects
        for subject_type, rule, function in _CHECKS
        if isinstance(subject, subject_type)
        for rule_hit in function(subject)
    ]
    return sort_findings(findings)


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort by level (errors first), then code, then key in natural order; the sort is stable."""
    return tuple(
        sorted(
            findings,
            key=lambda finding: (-finding.level, finding.rule.code, natural_sort_key(finding.key)),
        )
    )


def codes_for_subjects(subjects: Iterable[object]) -> frozenset[str]:
    """Return the codes of all rules with a check for the type of any of `subjects`."""
    subject_list = tuple(subjects)
    return frozenset(
        rule.code
        for subject_type, rule, _ in _CHECKS
        if any(isinstance(subject, subject_type) for subject in subject_list)
    )

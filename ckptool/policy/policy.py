"""Policy: which findings are reported, at which level, and what a release must satisfy."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from difflib import get_close_matches
from enum import IntEnum
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict, replace

from ckptool.config import PathEntry, ReleaseRequirements, Waiver
from ckptool.errors import UsageError
from ckptool.locations import list_glob_names, parse_location
from ckptool.phrases import join_limited
from ckptool.policy.stricter import combine_requirements
from ckptool.rules import RULES, Finding, Level, Rule

LEVELS: Final = {level.word: level for level in Level}

_MAX_NAMED_RULES: Final = 5
"""Rules that an error about an unknown one suggests."""


class ExitCode(IntEnum):
    PASSED = 0
    FAILED = 1
    COULD_NOT_CHECK = 2


class Policy(Struct, frozen=True):
    """Which findings are reported, and from which level they fail a run."""

    select: tuple[str, ...] = ()
    """Codes or families ("CK2") to report; () reports all."""
    ignore: tuple[str, ...] = ()
    """Codes or families not to report."""
    fail_on: Level | None = Level.ERROR
    """Lowest level that fails a run; None never fails."""
    levels: Mapping[str, Level] = {}
    """Code or family -> level of its findings; the longer match wins."""
    require: ReleaseRequirements = ReleaseRequirements()
    """Requirements for a release; checked only by the gate."""
    paths: tuple[PathEntry, ...] = ()
    """Overrides for the files that a glob matches; the last match wins."""
    waivers: tuple[Waiver, ...] = ()
    directory: Path = Path()
    """Directory to which globs over paths are relative."""
    source: str = ""
    """Configuration file, "" without one."""
    gate: bool = False
    """Whether a release is judged: then `Rule.gate` is the minimum level."""
    stricter: tuple["Policy", ...] = ()
    """Policies of other names of the same file, a link's target: the stricter result applies."""
    today: date | None = None
    """Date for the expiry of waivers; None is the current date (UTC)."""

    def __post_init__(self) -> None:
        path_codes = [
            code for entry in self.paths for code in (*(entry.select or ()), *(entry.ignore or ()))
        ]
        path_level_codes = [code for entry in self.paths for code in entry.levels]
        waiver_codes = [waiver.rule for waiver in self.waivers]
        for code in (
            *self.select,
            *self.ignore,
            *self.levels,
            *path_codes,
            *path_level_codes,
            *waiver_codes,
        ):
            resolve_rule_codes(code)

    def reports(self, code: str) -> bool:
        """Whether findings of `code` are reported; the longer match wins, a tie is not reported.

        A gate always reports what only an exact name may allow.
        """
        if self.gate and RULES[code].is_accepted_by_name:
            return True
        return self._reports(code) or any(other.reports(code) for other in self.stricter)

    def _reports(self, code: str) -> bool:
        selected_length = _longest_match_length(code, self.select)
        ignored_length = _longest_match_length(code, self.ignore)
        return (selected_length > 0 or not self.select) and (
            ignored_length == 0 or selected_length > ignored_length
        )

    def level(self, finding: Finding) -> Level:
        """Return the level of a finding under this policy.

        In a gate, a global that `globals` names is a warning at most, and no entry of `levels`
        lowers another.
        """
        return max((self._level(finding), *(other.level(finding) for other in self.stricter)))

    def _level(self, finding: Finding) -> Level:
        code = finding.rule.code
        gate_level = finding.rule.gate if self.gate else None
        if self.gate and finding.rule.is_accepted_by_name:
            is_allowed = finding.key in (self.require.globals or ())
            return Level.WARNING if is_allowed else max(finding.level, gate_level or finding.level)
        configured_code = max(
            (c for c in self.levels if code.startswith(c.upper())), key=len, default=None
        )
        if configured_code is not None:
            return self.levels[configured_code]
        return max(finding.level, gate_level or finding.level)

    def fails(self, level: Level) -> bool:
        """Whether a finding of `level` fails the run."""
        return self.fail_on is not None and level >= self.fail_on

    def at(self, path: str) -> "Policy":
        """Return the policy with the overrides for the checkpoint at `path`.

        A link has several names. The name as given decides, and so does each other one that an
        entry of `paths` matches: of two answers, the stricter.
        """
        first_entries, *other_entries = self.list_entries(path)
        policy = _override_policy(self, first_entries)
        for entries in other_entries:
            if entries and entries != first_entries:
                policy = _combine_policies(policy, _override_policy(self, entries))
        return policy

    def list_entries(self, path: str) -> tuple[tuple[PathEntry, ...], ...]:
        """Return the entries of `paths` that match each name of `path`, the given name first."""
        names = _list_names(path, self.directory) if path else ("",)
        return tuple(
            tuple(entry for entry in self.paths if name and fnmatchcase(name, entry.path))
            for name in names
        )

    def relative(self, path: str) -> str:
        """Return the text that globs match: `path` relative to `directory` if it is inside it.

        A link is named as given, and not as its target.

        A remote path is its URL without password and query.
        """
        return _list_names(path, self.directory)[0]

    def matching(self, waiver: Waiver, path: str) -> bool:
        """Whether a waiver applies to the checkpoint at `path`."""
        return waiver.path == "*" or fnmatchcase(self.relative(path), waiver.path)

    def expired(self, waiver: Waiver) -> bool:
        today = self.today or datetime.now(tz=UTC).date()
        return waiver.expires is not None and waiver.expires < today


@cache
def _list_names(path: str, directory: Path) -> tuple[str, ...]:
    """Return the names of `path` that globs match, each once, as given first."""
    names = list_glob_names(parse_location(path), directory)
    # File names can contain lone surrogates; policy and baseline files cannot.
    return tuple(name.encode(errors="backslashreplace").decode() for name in names)


def resolve_rule_codes(text: str) -> tuple[str, ...]:
    """Return the rule codes that `text` matches: a code, a prefix of codes, or a rule's name.

    Raises:
        UsageError: no rule matches.
    """
    codes_by_name = tuple(code for code, rule in RULES.items() if rule.name == text.lower())
    codes = codes_by_name or tuple(code for code in RULES if text and code.startswith(text.upper()))
    if not codes:
        raise UsageError(
            f"there is no rule {text!r}{_suggest_rules(text)} (`ckptool rule` lists them all)"
        )
    return codes


def _suggest_rules(text: str) -> str:
    """Return "; did you mean ...?" for what is no rule: names with its word, or a similar one."""
    names = [rule.name for rule in RULES.values()]
    if named := [
        f"{code} {rule.name}" for code, rule in sorted(RULES.items()) if _has_word(rule, text)
    ]:
        return f"; did you mean {join_limited(named, _MAX_NAMED_RULES)}?"
    close_matches = get_close_matches(text.lower(), names, n=1, cutoff=0.7)
    close_matches = close_matches or get_close_matches(text.upper(), RULES, n=1)
    return f"; did you mean {close_matches[0]}?" if close_matches else ""


def _has_word(rule: Rule, text: str) -> bool:
    """Return whether a word of `text` is in the rule's name, also as part of a longer one."""
    words = text.lower().replace("_", " ").replace("-", " ").split()
    return bool(words) and all(len(word) > 2 and word in rule.name for word in words)


def _longest_match_length(code: str, prefixes: tuple[str, ...]) -> int:
    return max((len(prefix) for prefix in prefixes if code.startswith(prefix.upper())), default=0)


def _override_policy(policy: Policy, entries: tuple[PathEntry, ...]) -> Policy:
    """Return `policy` with the settings of each of `entries` replaced, in order."""
    for entry in entries:
        fail_on = policy.fail_on if entry.fail_on is None else LEVELS.get(entry.fail_on)
        requirements = {
            name: value for name, value in asdict(entry.require).items() if value is not None
        }
        levels = {code: LEVELS[level] for code, level in entry.levels.items()}
        policy = replace(
            policy,
            select=policy.select if entry.select is None else entry.select,
            ignore=policy.ignore if entry.ignore is None else entry.ignore,
            fail_on=fail_on,
            levels={**policy.levels, **levels},
            require=replace(policy.require, **requirements),
        )
    return policy


def _combine_policies(first: Policy, second: Policy) -> Policy:
    """Return a policy that fails whatever one of the two fails."""
    fail_levels = [level for level in (first.fail_on, second.fail_on) if level is not None]
    return replace(
        first,
        fail_on=min(fail_levels, default=None),
        require=combine_requirements(first.require, second.require),
        stricter=(*first.stricter, second),
    )

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
from ckptool.locations import RemotePath, parse_location
from ckptool.rules import RULES, Finding, Level

LEVELS: Final = {level.word: level for level in Level}


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
        """Whether findings of `code` are reported; the longer match wins, a tie is not reported."""
        selected_length = _longest_match_length(code, self.select)
        ignored_length = _longest_match_length(code, self.ignore)
        return (selected_length > 0 or not self.select) and (
            ignored_length == 0 or selected_length > ignored_length
        )

    def level(self, finding: Finding) -> Level:
        """Return the level of a finding under this policy.

        In a gate, a global that `globals` names is a warning at most.
        """
        code = finding.rule.code
        allowed_names = self.require.globals or ()
        if self.gate and finding.rule.is_accepted_by_name and finding.key in allowed_names:
            return Level.WARNING
        configured_code = max(
            (c for c in self.levels if code.startswith(c.upper())), key=len, default=None
        )
        if configured_code is not None:
            return self.levels[configured_code]
        gate_level = finding.rule.gate if self.gate else None
        return max(finding.level, gate_level or finding.level)

    def fails(self, level: Level) -> bool:
        """Whether a finding of `level` fails the run."""
        return self.fail_on is not None and level >= self.fail_on

    def at(self, path: str) -> "Policy":
        """Return the policy with the overrides for the checkpoint at `path`."""
        policy = self
        for entry in self.paths:
            if path and fnmatchcase(self.relative(path), entry.path):
                policy = _override_policy(policy, entry)
        return policy

    def relative(self, path: str) -> str:
        """Return the text that globs match: `path` relative to `directory` if it is inside it.

        A remote path is its URL without password and query.
        """
        return _relative_path(path, self.directory)

    def matching(self, waiver: Waiver, path: str) -> bool:
        """Whether a waiver applies to the checkpoint at `path`."""
        return waiver.path == "*" or fnmatchcase(self.relative(path), waiver.path)

    def expired(self, waiver: Waiver) -> bool:
        today = self.today or datetime.now(tz=UTC).date()
        return waiver.expires is not None and waiver.expires < today


@cache
def _relative_path(path: str, directory: Path) -> str:
    location = parse_location(path)
    if isinstance(location, RemotePath):
        return location.url_without_secrets
    try:
        relative = location.resolve().relative_to(directory.resolve()).as_posix()
    except (ValueError, OSError, RuntimeError):
        relative = location.as_posix()
    # File names can contain lone surrogates; policy and baseline files cannot.
    return relative.encode(errors="backslashreplace").decode()


def resolve_rule_codes(text: str) -> tuple[str, ...]:
    """Return the rule codes that `text` matches: a code, a prefix of codes, or a rule's name.

    Raises:
        UsageError: no rule matches.
    """
    codes_by_name = tuple(code for code, rule in RULES.items() if rule.name == text.lower())
    codes = codes_by_name or tuple(code for code in RULES if text and code.startswith(text.upper()))
    if not codes:
        names = [rule.name for rule in RULES.values()]
        close_matches = get_close_matches(text.upper(), RULES, n=1)
        close_matches = get_close_matches(text.lower(), names, n=1, cutoff=0.7) or close_matches
        hint = f"; did you mean {close_matches[0]}?" if close_matches else ""
        raise UsageError(f"no rule is called {text!r}{hint} (`ckptool rule` lists them all)")
    return codes


def _longest_match_length(code: str, prefixes: tuple[str, ...]) -> int:
    return max((len(prefix) for prefix in prefixes if code.startswith(prefix.upper())), default=0)


def _override_policy(policy: Policy, entry: PathEntry) -> Policy:
    """Return `policy` with the settings of `entry` replaced."""
    fail_on = policy.fail_on if entry.fail_on is None else LEVELS.get(entry.fail_on)
    requirements = {
        name: value for name, value in asdict(entry.require).items() if value is not None
    }
    return replace(
        policy,
        select=policy.select if entry.select is None else entry.select,
        ignore=policy.ignore if entry.ignore is None else entry.ignore,
        fail_on=fail_on,
        levels={**policy.levels, **{code: LEVELS[level] for code, level in entry.levels.items()}},
        require=replace(policy.require, **requirements),
    )

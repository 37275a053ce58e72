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

from ckptool.config import PathEntry, Requirements, Waiver
from ckptool.errors import UsageError
from ckptool.locations import RemotePath, locate
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
    require: Requirements = Requirements()
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
        entries = [code for e in self.paths for code in (*(e.select or ()), *(e.ignore or ()))]
        levels = [code for e in self.paths for code in e.levels]
        waived = [w.rule for w in self.waivers]
        for code in (*self.select, *self.ignore, *self.levels, *entries, *levels, *waived):
            known_codes(code)

    def reports(self, code: str) -> bool:
        """Whether findings of `code` are reported; the longer match wins, a tie is not reported."""
        chosen = _longest(code, self.select)
        dropped = _longest(code, self.ignore)
        return (chosen > 0 or not self.select) and (dropped == 0 or chosen > dropped)

    def level(self, finding: Finding) -> Level:
        """Return the level of a finding under this policy."""
        code = finding.rule.code
        said = max((c for c in self.levels if code.startswith(c.upper())), key=len, default=None)
        if said is not None:
            return self.levels[said]
        graver = finding.rule.gate if self.gate else None
        return max(finding.level, graver or finding.level)

    def fails(self, level: Level) -> bool:
        """Whether a finding of `level` fails the run."""
        return self.fail_on is not None and level >= self.fail_on

    def at(self, path: str) -> "Policy":
        """Return the policy with the overrides for the checkpoint at `path`."""
        here = self
        for entry in self.paths:
            if path and fnmatchcase(self.relative(path), entry.path):
                here = _over(here, entry)
        return here

    def relative(self, path: str) -> str:
        """Return the text that globs match: `path` relative to `directory` if it is inside it.

        A remote path is its URL without password and query.
        """
        return _relative(path, self.directory)

    def matching(self, waiver: Waiver, path: str) -> bool:
        """Whether a waiver applies to the checkpoint at `path`."""
        return waiver.path == "*" or fnmatchcase(self.relative(path), waiver.path)

    def expired(self, waiver: Waiver) -> bool:
        today = self.today or datetime.now(tz=UTC).date()
        return waiver.expires is not None and waiver.expires < today


@cache
def _relative(path: str, directory: Path) -> str:
    place = locate(path)
    if isinstance(place, RemotePath):
        return place.plain
    try:
        found = place.resolve().relative_to(directory.resolve()).as_posix()
    except (ValueError, OSError, RuntimeError):
        found = place.as_posix()
    # File names can contain lone surrogates; policy and baseline files cannot.
    return found.encode(errors="backslashreplace").decode()


def known_codes(text: str) -> tuple[str, ...]:
    """Return the rule codes that `text` matches: a code, a prefix of codes, or a rule's name.

    Raises:
        UsageError: no rule matches.
    """
    named = tuple(code for code, one in RULES.items() if one.name == text.lower())
    codes = named or tuple(code for code in RULES if text and code.startswith(text.upper()))
    if not codes:
        names = [one.name for one in RULES.values()]
        close = get_close_matches(text.upper(), RULES, n=1)
        close = get_close_matches(text.lower(), names, n=1, cutoff=0.7) or close
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"no rule is called {text!r}{hint} (`ckptool rule` lists them all)")
    return codes


def _longest(code: str, beginnings: tuple[str, ...]) -> int:
    return max((len(s) for s in beginnings if code.startswith(s.upper())), default=0)


def _over(policy: Policy, entry: PathEntry) -> Policy:
    """Return `policy` with the settings of `entry` replaced."""
    fail_on = policy.fail_on if entry.fail_on is None else LEVELS.get(entry.fail_on)
    said = {name: value for name, value in asdict(entry.require).items() if value is not None}
    return replace(
        policy,
        select=policy.select if entry.select is None else entry.select,
        ignore=policy.ignore if entry.ignore is None else entry.ignore,
        fail_on=fail_on,
        levels={**policy.levels, **{code: LEVELS[word] for code, word in entry.levels.items()}},
        require=replace(policy.require, **said),
    )

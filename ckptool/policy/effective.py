"""ProjectConfig and PolicyOptions -> Policy, and the origin of each of its settings."""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import asdict, replace

from ckptool.config import Config, PathEntry, Requirements, Waiver
from ckptool.errors import ConfigError, UsageError
from ckptool.policy.terms import LEVELS, Policy, known_codes
from ckptool.rules import RULES

DEFAULT_REQUIREMENTS: Final = Requirements(strict=True, device="cuda")
"""Default requirements of a gate."""


class Options(Struct, frozen=True):
    """Policy options of the command line; () and None are not set."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: str | None = None
    baseline: str | None = None


class Setting(Struct, frozen=True):
    """One setting of the effective policy, as text."""

    name: str
    value: str
    origin: str
    """"default", "--fail-on", or "FILE: [table]"."""


def policy_of(config: Config, options: Options = Options()) -> Policy:  # noqa: B008 (frozen)
    """Return the policy of `config`; options override the configuration.

    Raises:
        ConfigError: the configuration names an unknown rule.
        UsageError: an option names an unknown rule.
    """
    said = config.settings
    _check(config)
    return Policy(
        select=options.select or said.select,
        ignore=options.ignore or said.ignore,
        fail_on=LEVELS.get(options.fail_on or said.fail_on or "error"),
        levels={code: LEVELS[word] for code, word in said.levels.items()},
        require=said.require,
        paths=tuple(_under(entry, options) for entry in said.paths),
        waivers=said.waivers,
        directory=config.directory,
        source="" if config.file is None else os.path.relpath(config.file),
    )


def settings_of(config: Config, options: Options, path: str | None) -> tuple[Setting, ...]:
    """List the gate's settings for the checkpoint at `path`; None lists overrides for all paths."""
    policy = policy_of(config, options)
    name = _name(config)
    found = {**_defaults(), **_said(config.settings, f"{name}: {_table(config)}".rstrip(": "))}
    found |= _optional(options)
    for number, entry in enumerate(policy.paths):
        if path is not None and fnmatchcase(policy.relative(path), entry.path):
            table = _table(config, "paths")
            found |= _said(entry, f"{name}: {table} number {number + 1}, {entry.path}")
    waivers = [
        _waiver(w, policy, f"{name}: {_table(config, 'waivers')}")
        for w in policy.waivers
        if path is None or policy.matching(w, path)
    ]
    shown = [Setting(key, value, origin) for key, (value, origin) in sorted(found.items())]
    others = [] if path is not None else _others(policy, f"{name}: {_table(config, 'paths')}")
    return (*shown, *waivers, *others)


def _check(config: Config) -> None:
    said = config.settings
    tables: list[tuple[str, tuple[str, ...]]] = [
        ("select", said.select),
        ("ignore", said.ignore),
        ("levels", tuple(said.levels)),
        ("waivers", tuple(w.rule for w in said.waivers)),
    ]
    for entry in said.paths:
        codes = (*(entry.select or ()), *(entry.ignore or ()), *entry.levels)
        tables.append((f"paths, {entry.path}", codes))
    for table, codes in tables:
        for code in codes:
            try:
                known_codes(code)
            except UsageError as error:
                raise ConfigError(config.file or Path(), f"{table}: {error}") from error


def _under(entry: PathEntry, options: Options) -> PathEntry:
    """Return `entry` without the settings that an option overrides."""
    return replace(
        entry,
        select=None if options.select else entry.select,
        ignore=None if options.ignore else entry.ignore,
        fail_on=None if options.fail_on else entry.fail_on,
    )


def _name(config: Config) -> str:
    return "" if config.file is None else config.file.name


def _table(config: Config, inner: str = "") -> str:
    """Return a table's header as its file writes it, "" for the top level of ckptool.toml."""
    if _name(config) != "pyproject.toml":
        return f"[[{inner}]]" if inner else ""
    return f"[[tool.ckptool.{inner}]]" if inner else "[tool.ckptool]"


def _defaults() -> dict[str, tuple[str, str]]:
    plain = {"select": "all", "ignore": "none", "fail-on": "error", "baseline": "none"}
    required = {
        f"require.{name}": _words(value) if value is not None else "not asked"
        for name, value in _kebab(DEFAULT_REQUIREMENTS).items()
    }
    gate = {f"levels.{r.code}": f"{r.gate.word} at least" for r in RULES.values() if r.gate}
    return {name: (value, "default") for name, value in {**plain, **required, **gate}.items()}


def _said(table: Any, origin: str) -> dict[str, tuple[str, str]]:
    """Return what `table`, Settings or a PathEntry, sets: name -> (value, origin)."""
    found: dict[str, tuple[str, str]] = {}
    for name in ("select", "ignore", "fail_on", "baseline"):
        value = getattr(table, name, None)
        if value:
            found[name.replace("_", "-")] = (_words(value), origin)
    for code, word in table.levels.items():
        found[f"levels.{code}"] = (word, origin)
    for name, value in _kebab(table.require).items():
        if value is not None:
            found[f"require.{name}"] = (_words(value), origin)
    return found


def _optional(options: Options) -> dict[str, tuple[str, str]]:
    return {name: (_words(value), f"--{name}") for name, value in _kebab(options).items() if value}


def _kebab(one: Struct) -> Mapping[str, Any]:
    return {name.replace("_", "-"): value for name, value in asdict(one).items()}


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return (", ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def _waiver(waiver: Waiver, policy: Policy, origin: str) -> Setting:
    until = f", until {waiver.expires}" if waiver.expires else ""
    lapsed = ", expired" if policy.expired(waiver) else ""
    scope = f"{waiver.key} in {waiver.path}"
    return Setting(f"waivers.{waiver.rule}", f"{scope}{until}{lapsed}: {waiver.reason}", origin)


def _others(policy: Policy, origin: str) -> list[Setting]:
    """Return the settings that apply to some paths only."""
    return [
        Setting(f"{name} for {entry.path}", value, origin)
        for entry in policy.paths
        for name, (value, _) in _said(entry, origin).items()
    ]

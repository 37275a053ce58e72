"""ProjectConfig and PolicyOptions -> Policy, and the origin of each of its settings."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict, replace

from ckptool.config import PathEntry, ProjectConfig, ReleaseRequirements, Settings, Waiver
from ckptool.errors import ConfigError, UsageError
from ckptool.policy.policy import LEVELS, Policy, resolve_rule_codes
from ckptool.rules import RULES

DEFAULT_REQUIREMENTS: Final = ReleaseRequirements(strict=True, device="cuda")
"""Default requirements of a gate."""


class PolicyOptions(Struct, frozen=True):
    """Policy options of the command line; () and None are not set."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: str | None = None
    baseline: str | None = None


class PolicySetting(Struct, frozen=True):
    """One setting of the effective policy, as text."""

    name: str
    value: str
    origin: str
    """"default", "--fail-on", or "FILE: [table]"."""


def resolve_policy(config: ProjectConfig, options: PolicyOptions = PolicyOptions()) -> Policy:  # noqa: B008 (frozen)
    """Return the policy of `config`; options override the configuration.

    Raises:
        ConfigError: the configuration names an unknown rule.
        UsageError: an option names an unknown rule.
    """
    settings = config.settings
    _check_rule_codes(config)
    return Policy(
        select=options.select or settings.select,
        ignore=options.ignore or settings.ignore,
        fail_on=LEVELS.get(options.fail_on or settings.fail_on or "error"),
        levels={code: LEVELS[level] for code, level in settings.levels.items()},
        require=settings.require,
        paths=tuple(_without_overridden(entry, options) for entry in settings.paths),
        waivers=settings.waivers,
        directory=config.directory,
        source="" if config.file is None else os.path.relpath(config.file),
    )


def list_settings(
    config: ProjectConfig, options: PolicyOptions, path: str | None
) -> tuple[PolicySetting, ...]:
    """List the gate's settings for the checkpoint at `path`; None lists overrides for all paths."""
    policy = resolve_policy(config, options)
    name = _get_file_name(config)
    values = {
        **_collect_defaults(),
        **_collect_configured(
            config.settings, f"{name}: {_format_table_name(config)}".rstrip(": ")
        ),
    }
    values |= _collect_options(options)
    matched = policy.list_entries(path) if path is not None else ()
    for number, entry in enumerate(policy.paths):
        if any(entry in entries for entries in matched):
            table = _format_table_name(config, "paths")
            values |= _collect_configured(
                entry, f"{name}: {table} number {number + 1}, {entry.path}"
            )
    waivers = [
        _describe_waiver(waiver, policy, f"{name}: {_format_table_name(config, 'waivers')}")
        for waiver in policy.waivers
        if path is None or policy.matching(waiver, path)
    ]
    settings = [
        PolicySetting(key, value, origin) for key, (value, origin) in sorted(values.items())
    ]
    path_settings = (
        []
        if path is not None
        else _list_path_settings(policy, f"{name}: {_format_table_name(config, 'paths')}")
    )
    return (*settings, *waivers, *path_settings)


def _check_rule_codes(config: ProjectConfig) -> None:
    settings = config.settings
    tables: list[tuple[str, tuple[str, ...]]] = [
        ("select", settings.select),
        ("ignore", settings.ignore),
        ("levels", tuple(settings.levels)),
        ("waivers", tuple(waiver.rule for waiver in settings.waivers)),
    ]
    for entry in settings.paths:
        codes = (*(entry.select or ()), *(entry.ignore or ()), *entry.levels)
        tables.append((f"paths, {entry.path}", codes))
    for table, codes in tables:
        for code in codes:
            try:
                resolve_rule_codes(code)
            except UsageError as error:
                raise ConfigError(config.file or Path(), f"{table}: {error}") from error


def _without_overridden(entry: PathEntry, options: PolicyOptions) -> PathEntry:
    """Return `entry` without the settings that an option overrides."""
    return replace(
        entry,
        select=None if options.select else entry.select,
        ignore=None if options.ignore else entry.ignore,
        fail_on=None if options.fail_on else entry.fail_on,
    )


def _get_file_name(config: ProjectConfig) -> str:
    return "" if config.file is None else config.file.name


def _format_table_name(config: ProjectConfig, inner: str = "") -> str:
    """Return a table's header as its file writes it, "" for the top level of ckptool.toml."""
    if _get_file_name(config) != "pyproject.toml":
        return f"[[{inner}]]" if inner else ""
    return f"[[tool.ckptool.{inner}]]" if inner else "[tool.ckptool]"


def _collect_defaults() -> dict[str, tuple[str, str]]:
    general = {"select": "all", "ignore": "none", "fail-on": "error", "baseline": "none"}
    requirements = {
        f"require.{name}": _format_value(value) if value is not None else "not asked"
        for name, value in _to_kebab_case(DEFAULT_REQUIREMENTS).items()
    }
    gate_levels = {
        f"levels.{rule.code}": f"{rule.gate.word} at least" for rule in RULES.values() if rule.gate
    }
    return {
        name: (value, "default")
        for name, value in {**general, **requirements, **gate_levels}.items()
    }


def _collect_configured(table: Settings | PathEntry, origin: str) -> dict[str, tuple[str, str]]:
    """Return what `table`, Settings or a PathEntry, sets: name -> (value, origin)."""
    values: dict[str, tuple[str, str]] = {}
    for name in ("select", "ignore", "fail_on", "baseline"):
        value = getattr(table, name, None)
        if value:
            values[name.replace("_", "-")] = (_format_value(value), origin)
    for code, level in table.levels.items():
        values[f"levels.{code}"] = (level, origin)
    for name, value in _to_kebab_case(table.require).items():
        if value is not None:
            values[f"require.{name}"] = (_format_value(value), origin)
    return values


def _collect_options(options: PolicyOptions) -> dict[str, tuple[str, str]]:
    return {
        name: (_format_value(value), f"--{name}")
        for name, value in _to_kebab_case(options).items()
        if value
    }


def _to_kebab_case(struct: Struct) -> Mapping[str, object]:
    return {name.replace("_", "-"): value for name, value in asdict(struct).items()}


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return (", ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def _describe_waiver(waiver: Waiver, policy: Policy, origin: str) -> PolicySetting:
    expiry_text = f", until {waiver.expires}" if waiver.expires else ""
    expired_text = ", expired" if policy.expired(waiver) else ""
    scope = f"{waiver.key} in {waiver.path}"
    return PolicySetting(
        f"waivers.{waiver.rule}", f"{scope}{expiry_text}{expired_text}: {waiver.reason}", origin
    )


def _list_path_settings(policy: Policy, origin: str) -> list[PolicySetting]:
    """Return the settings that apply to some paths only."""
    return [
        PolicySetting(f"{name} for {entry.path}", value, origin)
        for entry in policy.paths
        for name, (value, _) in _collect_configured(entry, origin).items()
    ]

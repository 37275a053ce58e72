"""Baseline file of known findings <-> Baseline."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from ckptool.errors import ConfigError, describe_os_error
from ckptool.locations import read_small_file
from ckptool.model import natural_sort_key
from ckptool.rules import Finding

_VERSION = 1


class BaselineEntry(Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """One known finding, as the baseline file stores it."""

    path: str
    """Path of the checkpoint, relative to the directory of the policy."""
    rule: str
    key: str
    fingerprint: str
    """Digest of the facts; independent of source line numbers."""


class _BaselineFile(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    findings: tuple[BaselineEntry, ...]


class Baseline(Struct, frozen=True):
    """Known findings, which do not fail a gate."""

    entries: frozenset[BaselineEntry] = frozenset()

    def contains_finding(self, finding: Finding, path: str) -> bool:
        """Whether the baseline contains `finding` for the checkpoint at `path`."""
        return to_baseline_entry(finding, path) in self.entries


def to_baseline_entry(finding: Finding, path: str) -> BaselineEntry:
    """Convert `finding` to the entry that a baseline stores for it."""
    key = finding.key.encode(errors="backslashreplace").decode()  # UTF-8 has no lone surrogates
    return BaselineEntry(path, finding.rule.code, key, finding.fingerprint)


def read_baseline(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        ConfigError: the file does not exist, cannot be read, is invalid, or has another version.
    """
    try:
        file = msgspec.json.decode(read_small_file(path), type=_BaselineFile)
    except OSError as error:
        hint = "; --update-baseline creates it" if not path.exists() else ""
        raise ConfigError(path, f"{describe_os_error(error)}{hint}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(path, f"is not a baseline: {error}") from error
    if file.version != _VERSION:
        raise ConfigError(
            path,
            f"is a baseline of version {file.version}; this version of ckptool reads {_VERSION}",
        )
    return Baseline(frozenset(file.findings))


def format_baseline(entries: Iterable[BaselineEntry]) -> str:
    """Format `entries` as the text of a baseline file: sorted, so that it is reproducible."""
    ordered_entries = sorted(
        set(entries),
        key=lambda entry: (entry.path, entry.rule, natural_sort_key(entry.key), entry.fingerprint),
    )
    json_text = msgspec.json.encode(_BaselineFile(_VERSION, tuple(ordered_entries)))
    return msgspec.json.format(json_text, indent=2).decode() + "\n"

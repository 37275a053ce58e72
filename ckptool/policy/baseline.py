"""A file of known findings -> Baseline, and back."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from ckptool.errors import ConfigError
from ckptool.model import natural
from ckptool.rules import Finding

_VERSION = 1


class Known(Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """One finding that was there before."""

    path: str
    """Of the checkpoint, relative to the policy's directory."""
    rule: str
    key: str
    fingerprint: str
    """Of the facts; it does not change when a line of source moves."""


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    findings: tuple[Known, ...]


class Baseline(Struct, frozen=True):
    """The findings that do not fail a gate, since they were there before."""

    known: frozenset[Known] = frozenset()

    def has(self, finding: Finding, path: str) -> bool:
        """Whether `finding` about the checkpoint at `path` is known."""
        return known(finding, path) in self.known


def known(finding: Finding, path: str) -> Known:
    """Return `finding` as a baseline names it."""
    key = finding.key.encode(errors="backslashreplace").decode()  # UTF-8 has no lone surrogates
    return Known(path, finding.rule.code, key, finding.fingerprint)


def read(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        ConfigError: there is none, or it is not one.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        hint = "; --update-baseline writes it" if not path.exists() else ""
        raise ConfigError(path, f"{error.strerror or error}{hint}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(path, f"is no baseline: {error}") from error
    if found.version != _VERSION:
        raise ConfigError(path, f"is a baseline of version {found.version}: this reads {_VERSION}")
    return Baseline(frozenset(found.findings))


def text(entries: Iterable[Known]) -> str:
    """Return the file of `entries`: sorted, and the same each time."""
    ordered = sorted(set(entries), key=lambda e: (e.path, e.rule, natural(e.key), e.fingerprint))
    encoded = msgspec.json.encode(_File(_VERSION, tuple(ordered)))
    return msgspec.json.format(encoded, indent=2).decode() + "\n"

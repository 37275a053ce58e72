"""Baseline file of known findings <-> Baseline."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from ckptool.errors import ConfigError
from ckptool.model import natural
from ckptool.rules import Finding

_VERSION = 1


class Known(Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """One known finding, as the baseline file stores it."""

    path: str
    """Path of the checkpoint, relative to the directory of the policy."""
    rule: str
    key: str
    fingerprint: str
    """Digest of the facts; independent of source line numbers."""


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    findings: tuple[Known, ...]


class Baseline(Struct, frozen=True):
    """Known findings, which do not fail a gate."""

    known: frozenset[Known] = frozenset()

    def has(self, finding: Finding, path: str) -> bool:
        """Whether the baseline contains `finding` for the checkpoint at `path`."""
        return known(finding, path) in self.known


def known(finding: Finding, path: str) -> Known:
    """Convert `finding` to the entry that a baseline stores for it."""
    key = finding.key.encode(errors="backslashreplace").decode()  # UTF-8 has no lone surrogates
    return Known(path, finding.rule.code, key, finding.fingerprint)


def read(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        ConfigError: the file does not exist, cannot be read, is invalid, or has another version.
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
    """Format `entries` as the text of a baseline file: sorted, so that it is reproducible."""
    ordered = sorted(set(entries), key=lambda e: (e.path, e.rule, natural(e.key), e.fingerprint))
    encoded = msgspec.json.encode(_File(_VERSION, tuple(ordered)))
    return msgspec.json.format(encoded, indent=2).decode() + "\n"

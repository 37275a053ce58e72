"""Structs that several reports share."""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType

SCHEMA: Final = 1
"""Version of the JSON output; within one version, fields are only added."""


class FindingReport(Struct, frozen=True, kw_only=True):
    code: str
    name: str
    level: str
    """"note", "warning" or "error"."""
    key: str
    message: str
    fix: str
    facts: Mapping[str, Any]
    path: str = ""
    """The checkpoint concerned; "" for a finding about a module only."""
    where: str = ""
    """"file:line" of the source concerned, "" if there is none."""
    fails: bool = False
    """Whether this finding fails the run."""
    fingerprint: str = ""
    """Digest of rule, key and facts; independent of source lines."""


class SilencedReport(Struct, frozen=True, kw_only=True):
    """A finding that does not count, and why."""

    finding: FindingReport
    by: str
    """"waiver" or "baseline"."""
    reason: str


class SkippedReport(Struct, frozen=True, kw_only=True):
    what: str
    reason: str
    path: str = ""
    """The checkpoint concerned if there are several, else ""."""


class TensorReport(Struct, frozen=True, kw_only=True):
    key: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    """Bytes of the elements; the storage may be larger."""
    device: str
    kind: str = ""
    """"parameter", "buffer" ...; "" if the file does not record it."""
    layout: str = "strided"


class UnsavedTensorReport(Struct, frozen=True, kw_only=True):
    key: str
    kind: str
    """A `model.Kind`: attribute, container, non-persistent-buffer, array, module, parameter or
    class-attribute."""
    owner: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    constancy: str
    """constant, random, mutated or unknown."""
    follows_to: bool
    where: str
    """"file:line" of the assignment, "" if unknown."""
    used: str
    """"file:line" of the first use reachable from forward, "" if none was found."""
    in_file: bool
    """Whether the file, a pickled module, holds its value although no state_dict does."""


class FactReport(Struct, frozen=True, kw_only=True):
    name: str
    value: str


class LevelReport(Struct, frozen=True, kw_only=True):
    level: str
    """load, device, forward, equality, "round trip" or survival."""
    status: str
    """passed, failed, skipped or inconclusive."""
    reason: str
    device: str
    """Device of the run: "cpu", "cuda:0", "simulated cuda:0"; "" if nothing ran."""
    details: tuple[str, ...]


class PictureReport(Struct, frozen=True, kw_only=True):
    """Values of a small tensor, or of sampled rows and columns of a larger one, as shades."""

    key: str
    of: str
    """Source of the values: "file", "module", "old" or "new"."""
    shape: tuple[int, ...]
    dtype: str
    whole: bool
    """Whether every element is shown."""
    legend: tuple[str, ...]
    """Label of each shade: ascending numbers or ranges, then non-finite values.
    All pictures of one key share one legend."""
    finite: int
    """Number of shades in the legend that are finite; they come first."""
    rows: tuple[tuple[int, ...], ...]
    """Index into the legend for each element."""


class DrawingReport(Struct, frozen=True, kw_only=True):
    """Data that only the charts of the HTML report need."""

    tensors: tuple[TensorReport, ...] = ()
    """Tensors of the file, or of the new one of two files."""
    expected: tuple[TensorReport, ...] = ()
    """Tensors of the module's state_dict, or of the old file."""
    pictures: tuple[PictureReport, ...] = ()


class Report(Struct, frozen=True, kw_only=True):
    """Fields of every report."""

    command: str
    findings: tuple[FindingReport, ...]
    skipped: tuple[SkippedReport, ...]
    exit_code: int
    schema: int = SCHEMA
    silenced: tuple[SilencedReport, ...] = ()
    drawing: DrawingReport | UnsetType = UNSET
    """UNSET unless charts were requested."""

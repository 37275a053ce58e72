"""What several reports are made of."""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType

SCHEMA: Final = 1
"""Within one number, fields are only added."""


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
    """The checkpoint that it is about; "" where it is about a module alone."""
    where: str = ""
    """"file:line" of the source that it is about, "" where there is none."""
    fails: bool = False
    """Whether the run fails for it."""
    fingerprint: str = ""
    """Of rule, key and facts; a moved line of source does not change it."""


class SilencedReport(Struct, frozen=True, kw_only=True):
    """A finding that does not count."""

    finding: FindingReport
    by: str
    """"waiver" or "baseline"."""
    reason: str


class SkippedReport(Struct, frozen=True, kw_only=True):
    what: str
    reason: str
    path: str = ""
    """The checkpoint that it is about, where there are several."""


class TensorReport(Struct, frozen=True, kw_only=True):
    key: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    """Of the elements; a storage may hold more."""
    device: str
    kind: str = ""
    """"parameter", "buffer" ...; "" where the file does not say."""
    layout: str = "strided"


class UnsavedReport(Struct, frozen=True, kw_only=True):
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
    """"file:line" of the first use that forward reaches, "" if none was found."""
    in_file: bool
    """Whether this file, a pickled module, holds its value all the same."""


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
    """Where it ran: "cpu", "cuda:0", "simulated cuda:0"; "" where nothing ran."""
    details: tuple[str, ...]


class PictureReport(Struct, frozen=True, kw_only=True):
    """The values of a small tensor, or of some rows and columns of a larger one, as shades."""

    key: str
    of: str
    """Whose value it is: "file", "module", "old" or "new"."""
    shape: tuple[int, ...]
    dtype: str
    whole: bool
    """Whether every element is shown."""
    legend: tuple[str, ...]
    """What each shade means: numbers or ranges of them, from low to high, then what is not finite.
    The pictures of one key have one legend."""
    finite: int
    """How many shades of the legend are numbers."""
    rows: tuple[tuple[int, ...], ...]
    """Of each element its place in the legend."""


class DrawingReport(Struct, frozen=True, kw_only=True):
    """What a picture of a report needs, and no other format."""

    tensors: tuple[TensorReport, ...] = ()
    """Of the file, or of the new one of two."""
    expected: tuple[TensorReport, ...] = ()
    """What the module saves, or the old file has."""
    pictures: tuple[PictureReport, ...] = ()


class Report(Struct, frozen=True, kw_only=True):
    """What every report has."""

    command: str
    findings: tuple[FindingReport, ...]
    skipped: tuple[SkippedReport, ...]
    exit_code: int
    schema: int = SCHEMA
    silenced: tuple[SilencedReport, ...] = ()
    drawing: DrawingReport | UnsetType = UNSET
    """Only where pictures were asked for."""

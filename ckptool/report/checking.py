"""Reports of `audit`, `verify` and `rule`."""

from msgspec import Struct

from ckptool.report.parts import LevelReport, Report, TensorReport, UnsavedTensorReport


class AuditReport(Report, frozen=True, kw_only=True):
    module: str
    unsaved: tuple[UnsavedTensorReport, ...]
    parameters: tuple[TensorReport, ...]
    persistent_buffers: tuple[TensorReport, ...]
    since: str = ""
    """Of a watched module: since when `unsaved` lists changed state (and only that); else ""."""


class DeviceMismatchReport(Struct, frozen=True, kw_only=True):
    """An operation whose operands are on different devices."""

    attribute: str
    """"" if the tensor is no attribute of the module."""
    what: str
    devices: tuple[str, str]
    """Actual device and expected device."""
    op: str
    where: str
    module: str


class VerifyReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"verified ...", "failed at ..." or "not verified ..."."""
    path: str
    module: str
    at: str
    device: str
    levels: tuple[LevelReport, ...]
    clashes: tuple[DeviceMismatchReport, ...]
    lost: tuple[str, ...]
    """State lost in the round trip: changed, saved and loaded, but not restored."""
    notes: tuple[str, ...]


class RuleReport(Struct, frozen=True, kw_only=True):
    code: str
    name: str
    level: str
    why: str
    fix: str
    message: str
    example: str
    gate: str
    """Level in `ckptool gate`, "" if it is the same."""

"""A module alone, or run on a checkpoint; a rule."""

from msgspec import Struct

from ckptool.report.parts import LevelReport, Report, TensorReport, UnsavedReport


class AuditReport(Report, frozen=True, kw_only=True):
    module: str
    unsaved: tuple[UnsavedReport, ...]
    parameters: tuple[TensorReport, ...]
    persistent_buffers: tuple[TensorReport, ...]
    since: str = ""
    """Of a watched module: since when the state in `unsaved` was changed; only that is listed."""


class ClashReport(Struct, frozen=True, kw_only=True):
    """An operation whose operands are on two devices."""

    attribute: str
    """"" where the module does not hold the tensor."""
    what: str
    devices: tuple[str, str]
    """Where it is, and where it would have to be."""
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
    clashes: tuple[ClashReport, ...]
    lost: tuple[str, ...]
    """State that did not survive: it was changed, saved and loaded."""
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
    """Level in `ckptool gate`, "" where it is the same."""

"""AnyReport: the union of all reports."""

from ckptool.reports.audit import AuditReport
from ckptool.reports.common import (
    SCHEMA,
    DrawingReport,
    FactReport,
    FindingReport,
    LevelReport,
    PictureReport,
    Report,
    SilencedReport,
    SkippedReport,
    TensorReport,
    UnsavedTensorReport,
)
from ckptool.reports.diff import DiffModuleReport, KeyReport
from ckptool.reports.diff_files import ChangeReport, DiffFilesReport, DiffShardReport
from ckptool.reports.digest import (
    CheckpointDigestReport,
    DigestCheckReport,
    DigestReport,
    TensorDigestReport,
)
from ckptool.reports.gate import (
    GatedCheckpointReport,
    GateReport,
    PolicyReport,
    PromiseReport,
    SettingReport,
)
from ckptool.reports.inspect import CheckpointReport, EntryReport, InspectReport, StateReport
from ckptool.reports.lock import DifferenceReport, LockReport, LocksReport
from ckptool.reports.migrate import CheckReport, MigrateReport, StepReport
from ckptool.reports.rule import RuleReport
from ckptool.reports.verify import DeviceMismatchReport, VerifyReport

AnyReport = (
    InspectReport
    | DiffModuleReport
    | DiffFilesReport
    | DiffShardReport
    | AuditReport
    | MigrateReport
    | VerifyReport
    | LockReport
    | LocksReport
    | GateReport
    | PolicyReport
    | DigestReport
)

__all__ = [
    "SCHEMA",
    "AnyReport",
    "AuditReport",
    "ChangeReport",
    "CheckReport",
    "CheckpointDigestReport",
    "CheckpointReport",
    "DeviceMismatchReport",
    "DiffFilesReport",
    "DiffModuleReport",
    "DiffShardReport",
    "DifferenceReport",
    "DigestCheckReport",
    "DigestReport",
    "DrawingReport",
    "EntryReport",
    "FactReport",
    "FindingReport",
    "GateReport",
    "GatedCheckpointReport",
    "InspectReport",
    "KeyReport",
    "LevelReport",
    "LockReport",
    "LocksReport",
    "MigrateReport",
    "PictureReport",
    "PolicyReport",
    "PromiseReport",
    "Report",
    "RuleReport",
    "SettingReport",
    "SilencedReport",
    "SkippedReport",
    "StateReport",
    "StepReport",
    "TensorDigestReport",
    "TensorReport",
    "UnsavedTensorReport",
    "VerifyReport",
]

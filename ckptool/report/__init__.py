"""Reports of the commands: frozen structs whose fields are the fields of the JSON output."""

from ckptool.report.checking import AuditReport, DeviceMismatchReport, RuleReport, VerifyReport
from ckptool.report.digesting import (
    CheckpointDigestReport,
    DigestCheckReport,
    DigestReport,
    TensorDigestReport,
)
from ckptool.report.gating import (
    DifferenceReport,
    GatedCheckpointReport,
    GateReport,
    LockReport,
    PolicyReport,
    PromiseReport,
    SettingReport,
)
from ckptool.report.migrating import CheckReport, MigrateReport, StepReport
from ckptool.report.parts import (
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
from ckptool.report.reading import (
    ChangeReport,
    CheckpointReport,
    DiffFilesReport,
    DiffModuleReport,
    DiffShardReport,
    EntryReport,
    InspectReport,
    KeyVerdict,
    StateReport,
)

AnyReport = (
    InspectReport
    | DiffModuleReport
    | DiffFilesReport
    | DiffShardReport
    | AuditReport
    | MigrateReport
    | VerifyReport
    | LockReport
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
    "KeyVerdict",
    "LevelReport",
    "LockReport",
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

"""Reports of the commands: frozen structs whose fields are the fields of the JSON output."""

from ckptool.report.checking import AuditReport, ClashReport, RuleReport, VerifyReport
from ckptool.report.digesting import (
    CheckpointDigestReport,
    DigestCheckReport,
    DigestReport,
    TensorDigestReport,
)
from ckptool.report.gating import (
    DifferenceReport,
    GatedReport,
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
    UnsavedReport,
)
from ckptool.report.reading import (
    ChangeReport,
    CheckpointReport,
    DiffFilesReport,
    DiffModuleReport,
    EntryReport,
    InspectReport,
    KeyVerdict,
    PartReport,
    StateReport,
)

AnyReport = (
    InspectReport
    | DiffModuleReport
    | DiffFilesReport
    | PartReport
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
    "ClashReport",
    "DiffFilesReport",
    "DiffModuleReport",
    "DifferenceReport",
    "DigestCheckReport",
    "DigestReport",
    "DrawingReport",
    "EntryReport",
    "FactReport",
    "FindingReport",
    "GateReport",
    "GatedReport",
    "InspectReport",
    "KeyVerdict",
    "LevelReport",
    "LockReport",
    "MigrateReport",
    "PartReport",
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
    "UnsavedReport",
    "VerifyReport",
]

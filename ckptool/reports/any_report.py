"""AnyReport: the union of all reports."""

from ckptool.reports.audit import AuditReport, ProjectAuditReport
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
from ckptool.reports.convert import ConversionReport, ConvertReport, LeftOutReport
from ckptool.reports.diff import DiffModuleReport, KeyReport
from ckptool.reports.diff_files import ChangeReport, DiffFilesReport, DiffShardReport
from ckptool.reports.digest import (
    CheckpointDigestReport,
    DigestCheckReport,
    DigestReport,
    TensorDigestReport,
)
from ckptool.reports.explain import AdviceReport, ExplainReport, ExplanationReport
from ckptool.reports.fix import FixReport, ProofReport, RefusedEditReport, SourceEditReport
from ckptool.reports.gate import (
    GatedCheckpointReport,
    GateReport,
    PolicyReport,
    PromiseReport,
    SettingReport,
)
from ckptool.reports.init import InitModelReport, InitReport
from ckptool.reports.inspect import CheckpointReport, EntryReport, InspectReport, StateReport
from ckptool.reports.load import LoadReport
from ckptool.reports.lock import DifferenceReport, LockReport, ProjectLockReport
from ckptool.reports.migrate import CheckReport, MigrateManyReport, MigrateReport, StepReport
from ckptool.reports.revisions.check import ArrivalReport, ChainCheckReport
from ckptool.reports.revisions.current import CurrentReport, CurrentRevisionReport
from ckptool.reports.revisions.history import HistoryReport, RevisionRowReport
from ckptool.reports.revisions.revision import NewRevisionReport, RevisionReport
from ckptool.reports.revisions.upgrade import TakenRevisionReport, UpgradeReport
from ckptool.reports.rule import RuleReport
from ckptool.reports.run import ResumeReport, RunLoadReport, RunReport, RunSaveReport
from ckptool.reports.verify import DeviceMismatchReport, VerifyReport

AnyReport = (
    InspectReport
    | DiffModuleReport
    | DiffFilesReport
    | DiffShardReport
    | AuditReport
    | ProjectAuditReport
    | ConvertReport
    | MigrateReport
    | MigrateManyReport
    | LoadReport
    | VerifyReport
    | LockReport
    | ProjectLockReport
    | GateReport
    | PolicyReport
    | DigestReport
    | InitReport
    | RunReport
    | ExplainReport
    | FixReport
    | RevisionReport
    | UpgradeReport
    | HistoryReport
    | CurrentReport
    | ChainCheckReport
)

__all__ = [
    "SCHEMA",
    "AdviceReport",
    "AnyReport",
    "ArrivalReport",
    "AuditReport",
    "ChainCheckReport",
    "ChangeReport",
    "CheckReport",
    "CheckpointDigestReport",
    "CheckpointReport",
    "ConversionReport",
    "ConvertReport",
    "CurrentReport",
    "CurrentRevisionReport",
    "DeviceMismatchReport",
    "DiffFilesReport",
    "DiffModuleReport",
    "DiffShardReport",
    "DifferenceReport",
    "DigestCheckReport",
    "DigestReport",
    "DrawingReport",
    "EntryReport",
    "ExplainReport",
    "ExplanationReport",
    "FactReport",
    "FindingReport",
    "FixReport",
    "GateReport",
    "GatedCheckpointReport",
    "HistoryReport",
    "InitModelReport",
    "InitReport",
    "InspectReport",
    "KeyReport",
    "LeftOutReport",
    "LevelReport",
    "LoadReport",
    "LockReport",
    "MigrateManyReport",
    "MigrateReport",
    "NewRevisionReport",
    "PictureReport",
    "PolicyReport",
    "ProjectAuditReport",
    "ProjectLockReport",
    "PromiseReport",
    "ProofReport",
    "RefusedEditReport",
    "Report",
    "ResumeReport",
    "RevisionReport",
    "RevisionRowReport",
    "RuleReport",
    "RunLoadReport",
    "RunReport",
    "RunSaveReport",
    "SettingReport",
    "SilencedReport",
    "SkippedReport",
    "SourceEditReport",
    "StateReport",
    "StepReport",
    "TakenRevisionReport",
    "TensorDigestReport",
    "TensorReport",
    "UnsavedTensorReport",
    "UpgradeReport",
    "VerifyReport",
]

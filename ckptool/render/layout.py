"""Report -> blocks, the same for all formats for people."""

from collections.abc import Iterator
from typing import assert_never

from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    Block,
    build_findings_blocks,
    build_silenced_lines,
    build_skipped_lines,
    group_by_path,
)
from ckptool.render.layouts import (
    checking,
    digesting,
    gating,
    locking,
    migrating,
    reading,
    revising,
)
from ckptool.report import (
    AnyReport,
    AuditReport,
    DiffFilesReport,
    DiffModuleReport,
    DiffShardReport,
    DigestReport,
    GateReport,
    InspectReport,
    LockReport,
    MigrateReport,
    PolicyReport,
    VerifyReport,
)


def build_blocks(report: AnyReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the blocks of `report`: its body, then findings, silenced findings, skipped checks."""
    yield from build_body(report, options)
    if options.verbosity >= 0 or isinstance(report, InspectReport):
        multiple_checkpoints = (
            isinstance(report, GateReport | InspectReport) and len(report.checkpoints) > 1
        )
        for path, path_findings in group_by_path(
            report.findings, multiple_checkpoints=multiple_checkpoints
        ).items():
            yield from build_findings_blocks(path_findings, options, path)
        yield from build_silenced_lines(report.silenced)
        yield from build_skipped_lines(report.skipped)


def build_body(  # noqa: C901, PLR0911 (one for each report)
    report: AnyReport, options: RenderOptions
) -> Iterator[Block]:
    """Yield the blocks of this kind of report: verdict, lines, tables."""
    match report:
        case InspectReport():
            return reading.build_inspect_blocks(report, options)
        case DiffModuleReport():
            return reading.build_module_diff_blocks(report, options)
        case DiffFilesReport():
            return revising.build_diff_files_blocks(report, options)
        case DiffShardReport():
            return revising.build_diff_shard_blocks(report, options)
        case AuditReport():
            return checking.build_audit_blocks(report, options)
        case MigrateReport():
            return migrating.build_migrate_blocks(report, options)
        case VerifyReport():
            return checking.build_verify_blocks(report, options)
        case LockReport():
            return locking.build_lock_blocks(report, options)
        case GateReport():
            return gating.build_gate_blocks(report, options)
        case PolicyReport():
            return gating.build_policy_blocks(report, options)
        case DigestReport():
            return digesting.build_digest_blocks(report, options)
        case _:
            assert_never(report)

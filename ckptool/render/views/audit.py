"""AuditReport -> blocks."""

from collections.abc import Iterator, Sequence

from ckptool.phrases import format_size, pluralize
from ckptool.render import RenderOptions
from ckptool.render.blocks import (
    COUNT,
    DTYPE,
    KIND,
    SHAPE,
    SIZE,
    VALUE,
    VERDICT,
    Block,
    Column,
    ColumnKind,
    LinesBlock,
    TableBlock,
    VerdictBlock,
    build_table,
    fold_unless_verbose,
)
from ckptool.reports.audit import AuditReport, ProjectAuditReport
from ckptool.reports.common import FindingReport, UnsavedTensorReport
from ckptool.rules.fixes.commands import format_fix_command
from ckptool.rules.fixes.faults import FIXABLE
from ckptool.rules.fixes.source_lines import is_in_package
from ckptool.rules.object_state import LOST_OBJECT_STATE
from ckptool.rules.runtime import PYTHON_STATE


def _format_audit_verdict(report: AuditReport) -> str:
    if report.is_object:
        return _format_object_verdict(report)
    if report.since:
        return _format_watch_verdict(report)
    if not report.unsaved and not report.findings:
        return "the state_dict contains everything"
    if not report.unsaved:
        return "the state_dict contains every tensor"
    return f"{pluralize(len(report.unsaved), 'tensor')} not in the state_dict"


def _format_object_verdict(report: AuditReport) -> str:
    count = sum(finding.code == LOST_OBJECT_STATE for finding in report.findings)
    if count:
        return f"{report.module}: load_state_dict() does not restore {pluralize(count, 'value')}"
    if report.findings:
        return f"{report.module} does not load its own state_dict()"
    if report.skipped:
        return f"{report.module}: not checked: {report.skipped[0].what}"
    return f"{report.module}: load_state_dict() restores everything that changed {report.since}"


def _format_watch_verdict(report: AuditReport) -> str:
    value_count = sum(finding.code == PYTHON_STATE for finding in report.findings)
    tensor_count = len(report.unsaved)
    if not tensor_count and not value_count:
        return f"the state_dict contains everything that changed {report.since}"
    parts = ((tensor_count, "tensor"), (value_count, "Python value"))
    counts_text = " and ".join(pluralize(number, noun) for number, noun in parts if number)
    return f"changed {report.since}, and not in the state_dict: {counts_text}"


def build_blocks(
    report: AuditReport | ProjectAuditReport, options: RenderOptions
) -> Iterator[Block]:
    """Yield the verdict, the counts and the unsaved tensors; of a project the verdict alone."""
    if isinstance(report, ProjectAuditReport):
        yield VerdictBlock(report.verdict, bool(report.exit_code))
        yield from [LinesBlock(report.errors)] if report.errors else []
        rows = [(module.module, _format_audit_verdict(module)) for module in report.modules]
        if rows and options.verbosity >= 0:
            yield build_table("Modules", ("module", VERDICT), rows, options)
        return
    yield VerdictBlock(_format_audit_verdict(report), bool(report.exit_code))
    if options.verbosity < 0 or report.is_object:
        return
    parameter_nbytes = sum(t.nbytes for t in report.parameters)
    buffer_nbytes = sum(t.nbytes for t in report.persistent_buffers)
    saved_counts = (
        f"{pluralize(len(report.parameters), 'parameter')} ({format_size(parameter_nbytes)})",
        (
            f"{pluralize(len(report.persistent_buffers), 'persistent buffer')}"
            f" ({format_size(buffer_nbytes)})"
        ),
    )
    yield LinesBlock((report.module, f"saved: {', '.join(saved_counts)}"))
    if report.unsaved:
        yield build_unsaved_table(report.unsaved, options)
    yield from iter_fix_hint(report.module, report.findings)


def iter_fix_hint(module: str, findings: Sequence[FindingReport]) -> Iterator[LinesBlock]:
    """Yield the command that registers what findings name, if it edits the module's source."""
    is_editable = any(
        finding.code in FIXABLE and finding.where and not is_in_package(finding.where)
        for finding in findings
    )
    command = format_fix_command(module) if is_editable else ""
    if command:
        yield LinesBlock((f"to register them in the source: {command}",))


def build_unsaved_table(
    unsaved: tuple[UnsavedTensorReport, ...], options: RenderOptions
) -> TableBlock:
    keyed_tensors = (
        (u.key, (u.kind, u.dtype, u.shape, u.constancy, u.follows_to), u) for u in unsaved
    )
    rows = [
        (
            group.key,
            str(len(group.items)),
            group.items[0].kind,
            group.items[0].dtype,
            str(list(group.items[0].shape)),
            format_size(sum(u.nbytes for u in group.items)),
            group.items[0].constancy,
            "follows" if group.items[0].follows_to else "stays",
        )
        for group in fold_unless_verbose(keyed_tensors, options)
    ]
    headers = ("key", COUNT, KIND, DTYPE, SHAPE, SIZE, VALUE, Column("on .to()", ColumnKind.WORDS))
    return build_table("Tensors not in the module's state_dict", headers, rows, options)

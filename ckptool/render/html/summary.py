"""Report -> page summary: the paths that were compared and the key figures."""

from typing import TYPE_CHECKING

from ckptool.phrases import format_size, pluralize
from ckptool.render.html.components import InlineText
from ckptool.render.text import split_code_spans
from ckptool.reports.audit import AuditReport
from ckptool.reports.diff import DiffModuleReport
from ckptool.reports.diff_files import DiffFilesReport
from ckptool.reports.inspect import InspectReport

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

LabeledValue = tuple[str, str]


def build_summary_lines(report: "AnyReport") -> tuple[InlineText, ...]:
    """Return the summary lines; () if the lines that all formats show serve."""
    match report:
        case InspectReport():
            return tuple(split_code_spans(error) for error in report.errors)
        case DiffModuleReport():
            headline = f"`{report.path}` against `{report.module}`"
            return tuple(map(split_code_spans, (headline, *report.notes)))
        case DiffFilesReport():
            state_paths = report.old_at, report.new_at
            location_text = f", at `{state_paths[0] or '.'}` and `{state_paths[1] or '.'}`"
            suffix = location_text if state_paths[0] != state_paths[1] else ""
            return (split_code_spans(f"`{report.old}` against `{report.new}`{suffix}"),)
        case AuditReport():
            return (split_code_spans(f"`{report.module}`"),)
        case _:
            return ()


def build_summary_facts(report: "AnyReport") -> tuple[LabeledValue, ...]:
    """Return (formatted number, label) pairs, () for reports without figures."""
    match report:
        case InspectReport():
            return _build_checkpoint_facts(report)
        case DiffModuleReport():
            return (
                _format_fact(len(report.matched), "key that matches", "keys that match"),
                (f"{len(report.missing_keys):,}", "missing"),
                (f"{len(report.unexpected_keys):,}", "unexpected"),
                _format_fact(len(report.mismatched_keys), "shape mismatch", "shape mismatches"),
                *(
                    ((f"{len(report.mistyped_keys):,}", "without a tensor"),)
                    if report.mistyped_keys
                    else ()
                ),
                (f"{len(report.unsaved):,}", "never saved"),
                *(
                    ((f"{100 * report.coverage:.0f}%", "of the parameters would load"),)
                    if report.is_coverage_known
                    else ()
                ),
            )
        case DiffFilesReport():
            return (
                _format_fact(len(report.added_keys), "key added", "keys added"),
                (f"{len(report.removed_keys):,}", "removed"),
                (f"{len(report.changed_keys):,}", "changed"),
                (f"{len(report.renamed_keys):,}", "renamed"),
            )
        case AuditReport():
            saved = (*report.parameters, *report.persistent_buffers)
            return (
                _format_fact(len(report.parameters), "parameter", "parameters"),
                (f"{len(report.persistent_buffers):,}", "saved as buffers"),
                (f"{len(report.unsaved):,}", "never saved"),
                (format_size(sum(t.nbytes for t in saved)), "in a state_dict"),
                (format_size(sum(t.nbytes for t in report.unsaved)), "not in it"),
            )
        case _:
            return ()


def _build_checkpoint_facts(report: InspectReport) -> tuple[LabeledValue, ...]:
    tensors = [t for c in report.checkpoints for state in c.states for t in state.tensors]
    containers = dict.fromkeys(c.container for c in report.checkpoints)
    return (
        (", ".join(containers), pluralize(len(report.checkpoints), "file")),
        (format_size(sum(c.nbytes for c in report.checkpoints)), "on disk"),
        _format_fact(len(tensors), "tensor", "tensors"),
        (format_size(sum(t.nbytes for t in tensors)), "of tensor data"),
    )


def _format_fact(number: int, singular: str, plural: str) -> LabeledValue:
    return f"{number:,}", singular if number == 1 else plural

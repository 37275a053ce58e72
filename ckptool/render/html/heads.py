"""Report -> page summary: the paths that were compared and the key figures."""

from ckptool.render.html.parts import Words, words
from ckptool.render.text import count, size
from ckptool.report import (
    AnyReport,
    AuditReport,
    DiffFilesReport,
    DiffModuleReport,
    InspectReport,
)

Fact = tuple[str, str]


def lead(report: AnyReport) -> tuple[Words, ...]:
    """Return the summary lines; () if the lines that all formats show serve."""
    match report:
        case InspectReport():
            return tuple(words(error) for error in report.errors)
        case DiffModuleReport():
            first = f"`{report.path}` against `{report.module}`"
            return tuple(map(words, (first, *report.notes)))
        case DiffFilesReport():
            places = report.old_at, report.new_at
            beside = f", at `{places[0] or '.'}` and `{places[1] or '.'}`"
            differ = beside if places[0] != places[1] else ""
            return (words(f"`{report.old}` against `{report.new}`{differ}"),)
        case AuditReport():
            return (words(f"`{report.module}`"),)
        case _:
            return ()


def facts(report: AnyReport) -> tuple[Fact, ...]:
    """Return (formatted number, label) pairs, () for reports without figures."""
    match report:
        case InspectReport():
            return _of_checkpoints(report)
        case DiffModuleReport():
            return (
                _fact(len(report.matched), "key that matches", "keys that match"),
                (f"{len(report.missing_keys):,}", "missing"),
                (f"{len(report.unexpected_keys):,}", "unexpected"),
                (f"{len(report.mismatched_keys):,}", "of another shape"),
                (f"{len(report.unsaved):,}", "never saved"),
                (f"{100 * report.coverage:.0f}%", "of the parameters would load"),
            )
        case DiffFilesReport():
            return (
                _fact(len(report.added_keys), "key added", "keys added"),
                (f"{len(report.removed_keys):,}", "removed"),
                (f"{len(report.changed_keys):,}", "changed"),
                (f"{len(report.renamed_keys):,}", "renamed"),
            )
        case AuditReport():
            saved = (*report.parameters, *report.persistent_buffers)
            return (
                _fact(len(report.parameters), "parameter", "parameters"),
                (f"{len(report.persistent_buffers):,}", "saved with them as buffers"),
                (f"{len(report.unsaved):,}", "never saved"),
                (size(sum(t.nbytes for t in saved)), "in a state_dict"),
                (size(sum(t.nbytes for t in report.unsaved)), "beside it"),
            )
        case _:
            return ()


def _of_checkpoints(report: InspectReport) -> tuple[Fact, ...]:
    tensors = [t for c in report.checkpoints for state in c.states for t in state.tensors]
    containers = dict.fromkeys(c.container for c in report.checkpoints)
    return (
        (", ".join(containers), count(len(report.checkpoints), "file")),
        (size(sum(c.nbytes for c in report.checkpoints)), "on disk"),
        _fact(len(tensors), "tensor", "tensors"),
        (size(sum(t.nbytes for t in tensors)), "of elements"),
    )


def _fact(number: int, one: str, many: str) -> Fact:
    return f"{number:,}", one if number == 1 else many

"""AuditReport, VerifyReport -> blocks."""

from collections.abc import Iterator

from ckptool.render import Style
from ckptool.render.blocks import Block, Grid, Lines, Verdict, grid, groups
from ckptool.render.text import count, size
from ckptool.report import AuditReport, UnsavedReport, VerifyReport


def _audit_words(report: AuditReport) -> str:
    if report.since:
        return _watch_words(report)
    if not report.unsaved and not report.findings:
        return "a state_dict holds everything"
    if not report.unsaved:
        return "a state_dict holds every tensor"
    return f"{count(len(report.unsaved), 'tensor')} that no state_dict holds"


def _watch_words(report: AuditReport) -> str:
    values = sum(finding.code == "CK107" for finding in report.findings)
    tensors = len(report.unsaved)
    if not tensors and not values:
        return f"a state_dict holds everything that changed {report.since}"
    parts = ((tensors, "tensor"), (values, "Python value"))
    lost = " and ".join(count(number, noun) for number, noun in parts if number)
    return f"changed {report.since}, and in no state_dict: {lost}"


def audit(report: AuditReport, style: Style) -> Iterator[Block]:
    yield Verdict(_audit_words(report), bool(report.exit_code))
    if style.verbosity < 0:
        return
    parameters = sum(t.nbytes for t in report.parameters)
    buffers = sum(t.nbytes for t in report.persistent_buffers)
    saved = (
        f"{count(len(report.parameters), 'parameter')} ({size(parameters)})",
        f"{count(len(report.persistent_buffers), 'persistent buffer')} ({size(buffers)})",
    )
    yield Lines((report.module, f"saved: {', '.join(saved)}"))
    if report.unsaved:
        yield unsaved_grid(report.unsaved, style)


def unsaved_grid(unsaved: tuple[UnsavedReport, ...], style: Style) -> Grid:
    forms = ((u.key, (u.kind, u.dtype, u.shape, u.constancy, u.follows_to), u) for u in unsaved)
    rows = [
        (
            g.key,
            str(len(g.items)),
            g.items[0].kind,
            g.items[0].dtype,
            str(list(g.items[0].shape)),
            size(sum(u.nbytes for u in g.items)),
            g.items[0].constancy,
            "follows" if g.items[0].follows_to else "stays",
        )
        for g in groups(forms, style)
    ]
    headers = ("key", "count", "kind", "dtype", "shape", "size", "value", "on .to()")
    return grid("State that no state_dict of this module holds", headers, rows, style)


def verification(report: VerifyReport, style: Style) -> Iterator[Block]:
    yield Verdict(report.verdict, bool(report.exit_code))
    if style.verbosity < 0:
        return
    place = f" at `{report.at}`" if report.at else ""
    yield Lines((f"{report.path}{place} with {report.module}, on {report.device}", *report.notes))
    rows = [
        (one.level, one.status, one.device, "; ".join(filter(None, (one.reason, *one.details))))
        for one in report.levels
    ]
    yield grid("Levels", ("level", "status", "ran on", "why, and what was seen"), rows, style)

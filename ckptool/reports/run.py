"""RunReport: the result of `run`."""

from collections.abc import Iterable

from msgspec import Struct

from ckptool.model import Skipped
from ckptool.phrases import pluralize
from ckptool.policy import Verdict
from ckptool.reports.common import (
    Report,
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
)
from ckptool.tracing.merge import LoadSite, RunTrace, SaveSite
from ckptool.tracing.resume_comparison import ResumeComparison


class RunLoadReport(Struct, frozen=True, kw_only=True):
    """A load, or several that are the same."""

    module: str
    loader: str
    file: str
    """File of the mapping, "" if its tensors come from no file that was read."""
    at: str
    """Key path of the mapping inside the file, "" for the root."""
    where: str
    """"file:line" of the call, "" if no code of the user made it."""
    count: int
    """Loads that are the same, of all processes."""
    is_strict: bool
    matched: int
    missing: int
    unexpected: int
    mismatched: int
    renamed: int
    """Keys that the script renamed between the file and the load."""
    error: str
    """Message of the exception, "" if the load returned."""


class RunSaveReport(Struct, frozen=True, kw_only=True):
    """Saves by one line of the script."""

    saver: str
    files: tuple[str, ...]
    where: str
    modules: tuple[str, ...]
    """Classes of the live modules whose tensors were saved."""
    objects: tuple[str, ...]
    """Optimizers, schedulers and the like whose state was saved."""
    tensors: int
    error: str


class ResumeReport(Struct, frozen=True, kw_only=True):
    """An interrupted and resumed run against an uninterrupted one."""

    checkpoint: str
    """File that was resumed from, "" if there was none."""
    file: str
    """File that both runs saved next, "" if nothing was compared."""
    compared: int
    """Tensors and plain values of that file."""
    differing: tuple[str, ...]
    """Key paths of those that differ."""
    random: tuple[str, ...]
    """Key paths that differ between two uninterrupted runs already."""
    reason: str
    """Why nothing was compared, "" if it was."""


class RunReport(Report, frozen=True, kw_only=True):
    verdict: str
    command_exit_code: int | None
    """Exit code of the traced command; 128 and the number of a signal that ended it. None of a
    test session."""
    processes: int
    """Processes that imported torch."""
    loads: tuple[RunLoadReport, ...]
    saves: tuple[RunSaveReport, ...]
    resume: ResumeReport | None = None
    """None without --resume-check."""


def build_run_report(
    trace: RunTrace,
    verdict: Verdict,
    command_exit_code: int | None,
    *,
    exit_code: int,
    resume: ResumeReport | None = None,
    skipped: Iterable[Skipped] = (),
) -> RunReport:
    """Build the report of a traced command; `exit_code` is what `ckptool run` exits with."""
    unchecked = (Skipped(record.what, record.reason) for record in trace.unchecked)
    resume_reason = resume.reason if resume is not None else ""
    return RunReport(
        command="run",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports((*unchecked, *skipped)),
        exit_code=exit_code,
        verdict=_format_verdict(trace, verdict, resume_reason),
        command_exit_code=command_exit_code,
        processes=len(trace.processes),
        loads=tuple(map(_build_load_report, trace.loads)),
        saves=tuple(map(_build_save_report, trace.saves)),
        resume=resume,
    )


def build_resume_report(comparison: ResumeComparison) -> ResumeReport:
    save = comparison.save
    return ResumeReport(
        checkpoint=comparison.checkpoint,
        file=save.file if save is not None else "",
        compared=save.saved_count if save is not None else 0,
        differing=save.saved_differences if save is not None else (),
        random=save.random_names if save is not None else (),
        reason=comparison.reason,
    )


def _format_verdict(trace: RunTrace, verdict: Verdict, resume_reason: str) -> str:
    load_count = sum(site.count for site in trace.loads)
    save_count = sum(site.count for site in trace.saves)
    counts = f"{pluralize(load_count, 'load')} and {pluralize(save_count, 'save')}"
    if not load_count and not save_count and not resume_reason:
        return "nothing was loaded into a module, and nothing was saved"
    if resume_reason:
        return f"{counts}: the resumed run was not compared: {resume_reason}"
    if not verdict.findings:
        return f"{counts}: nothing was lost that was looked at"
    worst = verdict.findings[0]
    others = len(verdict.findings) - 1
    more = f", and {pluralize(others, 'other finding')}" if others else ""
    return f"{counts}: {worst.summary}{more}"


def _build_load_report(site: LoadSite) -> RunLoadReport:
    record = site.record
    missing_from_mapping = record.unexpected_count + record.mismatch_count
    return RunLoadReport(
        module=record.module,
        loader=record.loader,
        file=record.file,
        at=record.at,
        where=record.where,
        count=site.count,
        is_strict=record.is_strict,
        matched=max(record.key_count - missing_from_mapping, 0),
        missing=record.missing_count,
        unexpected=record.unexpected_count,
        mismatched=record.mismatch_count,
        renamed=record.renamed_count,
        error=record.error,
    )


def _build_save_report(site: SaveSite) -> RunSaveReport:
    record = site.record
    return RunSaveReport(
        saver=record.saver,
        files=site.files,
        where=record.where,
        modules=tuple(module.module for module in record.modules),
        objects=tuple(item.owner for item in record.saved_objects if "module" not in item.kind),
        tensors=record.tensor_count,
        error=record.error,
    )

"""RunReport -> blocks."""

from collections.abc import Iterator
from pathlib import Path

from ckptool.phrases import pluralize, pluralize_mismatches, summarize_message
from ckptool.render import RenderOptions
from ckptool.render.blocks import Block, Column, ColumnKind, LinesBlock, VerdictBlock, build_table
from ckptool.reports.run import ResumeReport, RunLoadReport, RunReport, RunSaveReport


def build_blocks(report: RunReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the verdict, the command's exit code, and a row for each load and save."""
    yield VerdictBlock(report.verdict, any(finding.fails for finding in report.findings))
    if options.verbosity < 0:
        return
    if report.command_exit_code is not None:
        ended = f"the command ended with exit code {report.command_exit_code}"
        yield LinesBlock((f"{ended}; {_count_processes(report.processes)}",))
    if report.resume is not None and not report.resume.reason:
        yield LinesBlock((_format_resume(report.resume),))
    if report.loads:
        headers = ("module", "from", Column("outcome", ColumnKind.PROSE), "by")
        rows = [
            (load.module, _name_source(load), _format_outcome(load), load.where or load.loader)
            for load in report.loads
        ]
        yield build_table("Loads", headers, rows, options)
    if report.saves:
        save_headers = ("file", Column("contains", ColumnKind.PROSE), "by")
        save_rows = [
            (_name_files(save), _format_content(save), save.where) for save in report.saves
        ]
        yield build_table("Saves", save_headers, save_rows, options)


def _format_resume(resume: ResumeReport) -> str:
    same_count = resume.compared - len(resume.differing) - len(resume.random)
    outcome = f"{same_count:,} of {pluralize(resume.compared, 'value')} are the same"
    return f"resumed from {resume.checkpoint}, and compared at {resume.file}: {outcome}"


def _count_processes(count: int) -> str:
    if count > 1:
        return f"{count:,} processes used torch"
    return "one process used torch" if count else "no process used torch"


def _name_file(file: str) -> str:
    return file.removeprefix(f"{Path.cwd()}/")


def _name_source(load: RunLoadReport) -> str:
    if not load.file:
        return "memory"
    return f"{_name_file(load.file)}{f': {load.at}' if load.at else ''}"


def _format_outcome(load: RunLoadReport) -> str:
    counts = [f"{load.matched} keys match" if load.matched != 1 else "1 key matches"]
    if load.error:
        has_counts = load.missing or load.unexpected or load.mismatched
        counts = ["failed" if has_counts else f"failed: {summarize_message(load.error)}"]
    counts += [f"{load.missing} missing"] if load.missing else []
    counts += [f"{load.unexpected} unexpected"] if load.unexpected else []
    counts += [pluralize_mismatches(load.mismatched)] if load.mismatched else []
    counts += [f"{load.renamed} renamed by the script"] if load.renamed else []
    times = f" ({load.count} times)" if load.count > 1 else ""
    return ", ".join(counts) + times


def _name_files(save: RunSaveReport) -> str:
    first = _name_file(save.files[0]) or "memory"
    return f"{first} and {len(save.files) - 1} more" if len(save.files) > 1 else first


def _format_content(save: RunSaveReport) -> str:
    if save.error:
        return f"failed: {summarize_message(save.error)}"
    parts = [*save.modules, *save.objects]
    return ", ".join(parts) if parts else pluralize(save.tensors, "tensor")

"""FixReport: the result of `fix`."""

from msgspec import Struct

from ckptool.model import Skipped
from ckptool.phrases import pluralize
from ckptool.policy import ExitCode, Verdict
from ckptool.reports.common import (
    Report,
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
)


class ReplacementReport(Struct, frozen=True, kw_only=True):
    """Lines of a file, and the lines in their place."""

    file: str
    start_line: int
    """First line that is replaced, from 1."""
    end_line: int
    """Last line that is replaced; the one before `start_line` where lines are only added."""
    text: str
    """The new lines, with their line ends."""


class SourceEditReport(Struct, frozen=True, kw_only=True):
    """A statement that is replaced."""

    keys: tuple[str, ...]
    """Keys of the findings that it repairs."""
    codes: tuple[str, ...]
    where: str
    """"file:line" of the statement before the edit."""
    before: str
    after: str
    also_at: tuple[str, ...] = ()
    """"file:line" of statements in other branches, which are replaced with it; `before` and `after`
    have a line for each."""
    replacements: tuple[ReplacementReport, ...] = ()
    """Of the statement, of uses of the attribute, and of imports that the edit needs."""


class RefusedEditReport(Struct, frozen=True, kw_only=True):
    """A finding whose source is not edited."""

    keys: tuple[str, ...]
    codes: tuple[str, ...]
    where: str
    """"file:line" of the assignment, "" if it was not found."""
    reason: str


class ProofReport(Struct, frozen=True, kw_only=True):
    """A question about the edited source, and its answer."""

    name: str
    module: str
    result: str
    """"passed", "failed" or "not checked"."""
    reason: str


class FixReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"fixed ...", "would fix ...", "not written: ...", or that there is nothing to fix."""
    modules: tuple[str, ...]
    edits: tuple[SourceEditReport, ...]
    refused: tuple[RefusedEditReport, ...]
    proofs: tuple[ProofReport, ...]
    diff: str
    """Unified diff of all files, "" without an edit."""
    new_files: tuple[str, ...] = ()
    """Files that are added: a hook for old files, and its test."""
    is_written: bool = False
    notes: tuple[str, ...] = ()


class FixOutcome(Struct, frozen=True, kw_only=True):
    """What a run of `fix` found, planned, proved and wrote."""

    modules: tuple[str, ...]
    """Import targets that were looked at."""
    edits: tuple[SourceEditReport, ...]
    """Statements that are replaced."""
    refused: tuple[RefusedEditReport, ...]
    proofs: tuple[ProofReport, ...]
    """What was asked of a copy of the project."""
    diff: str
    new_files: tuple[str, ...]
    block: str
    """Why the edits are not written although it was asked for; "" if nothing is in the way."""
    is_asked: bool
    """Whether the edits were to be written."""
    is_written: bool
    """Whether the files have the edits."""
    notes: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def build_fix_report(outcome: FixOutcome, verdict: Verdict) -> FixReport:
    """Build the report; the findings of `verdict` are those in the source as it is now."""
    has_failed = any(proof.result == "failed" for proof in outcome.proofs)
    exit_code = verdict.exit_code
    if has_failed:
        exit_code = max(exit_code, ExitCode.FAILED)
    elif outcome.is_asked and outcome.block:
        exit_code = ExitCode.COULD_NOT_CHECK
    return FixReport(
        command="fix",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(outcome.skipped),
        exit_code=exit_code,
        verdict=_format_fix_verdict(outcome),
        modules=outcome.modules,
        edits=outcome.edits,
        refused=outcome.refused,
        proofs=outcome.proofs,
        diff=outcome.diff,
        new_files=outcome.new_files,
        is_written=outcome.is_written,
        notes=outcome.notes,
    )


def _format_fix_verdict(outcome: FixOutcome) -> str:
    edits, refused = outcome.edits, outcome.refused
    refused_text = f"; {pluralize(len(refused), 'finding')} not fixed" if refused else ""
    if not edits:
        return f"nothing is edited{refused_text}" if refused else "nothing to fix"
    lines_text = pluralize(sum(1 + len(edit.also_at) for edit in edits), "line")
    if outcome.is_written:
        return f"fixed {lines_text}{refused_text}"
    if outcome.block:
        return f"not written: {outcome.block}"
    return f"would fix {lines_text} (--write does it){refused_text}"

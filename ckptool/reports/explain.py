"""ExplainReport: the result of `explain`."""

from collections.abc import Sequence

from msgspec import Struct

from ckptool.phrases import cut_middle, pluralize
from ckptool.reports.common import Report, SkippedReport
from ckptool.rules.known_errors.explain import ExplainedError

NOTHING_EXPLAINED = 2
"""Exit code where no known error was found."""
_MAX_QUOTE_CHARS = 200


class AdviceReport(Struct, frozen=True, kw_only=True):
    """What to do next: a sentence, with a command or with code."""

    text: str
    command: str = ""
    code: str = ""


class ExplanationReport(Struct, frozen=True, kw_only=True):
    """One error of the log, its probable cause, and what to do next."""

    name: str
    """Name of the kind of error: "wrapped-file"."""
    cause: str
    certainty: str
    """"certain", "probable" or "possible"."""
    advice: tuple[AdviceReport, ...]
    quote: str
    """The line of the log with the error, shortened."""
    line: int
    """Its number, from 1."""
    count: int
    """How often the log has this error: once from every rank, for example."""


class ExplainReport(Report, frozen=True, kw_only=True):
    verdict: str
    source: str
    """Path of the log, "-" for standard input, "" for text."""
    line_count: int
    errors: tuple[ExplanationReport, ...]
    """In the order of the log."""


def build_explain_report(
    errors: Sequence[ExplainedError], source: str, line_count: int, omitted_chars: int = 0
) -> ExplainReport:
    """Build the report; without `errors` the exit code is 2, since nothing could be explained."""
    return ExplainReport(
        command="explain",
        findings=(),
        skipped=_build_skipped(omitted_chars),
        exit_code=0 if errors else NOTHING_EXPLAINED,
        verdict=_format_verdict(errors, line_count),
        source=source,
        line_count=line_count,
        errors=tuple(map(_build_explanation_report, errors)),
    )


def _format_verdict(errors: Sequence[ExplainedError], line_count: int) -> str:
    if not errors:
        return (
            f"no known error in {pluralize(line_count, 'line')}: give the whole traceback, from "
            "`Traceback` to the last line of the message"
        )
    first = errors[0].explanation
    if len(errors) == 1:
        return f"{first.certainty}: {first.cause}"
    return f"{len(errors)} causes; first, {first.certainty}: {first.cause}"


def _build_skipped(omitted_chars: int) -> tuple[SkippedReport, ...]:
    if not omitted_chars:
        return ()
    what = f"{pluralize(omitted_chars, 'character')} in the middle of the log"
    return (SkippedReport(what=what, reason="it is too long"),)


def _build_explanation_report(error: ExplainedError) -> ExplanationReport:
    explanation = error.explanation
    return ExplanationReport(
        name=explanation.name,
        cause=explanation.cause,
        certainty=str(explanation.certainty),
        advice=tuple(
            AdviceReport(text=advice.text, command=advice.command, code=advice.code)
            for advice in explanation.advice
        ),
        quote=cut_middle(error.quote, _MAX_QUOTE_CHARS),
        line=error.line,
        count=error.count,
    )

"""Traceback or log -> ExplainReport."""

from ckptool.reports.explain import ExplainReport, build_explain_report
from ckptool.rules.known_errors.explain import explain_clean_log
from ckptool.rules.known_errors.log_text import clean_log


def explain(text: str | BaseException, source: str = "") -> ExplainReport:
    """Explain the errors in a traceback or log: the probable cause, and what to do next.

    Nothing but the text is looked at. The report's `exit_code` is 2 if it has no known error.

    Args:
        text: a message, a traceback, a log, or an exception.
        source: how the report calls the text.
    """
    log = clean_log(_format_exception(text) if isinstance(text, BaseException) else text)
    line_count = sum(1 for line in log.lines if line.strip())
    return build_explain_report(explain_clean_log(log), source, line_count, log.omitted_chars)


def _format_exception(error: BaseException) -> str:
    from traceback import format_exception

    return "".join(format_exception(error))

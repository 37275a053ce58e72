"""Traceback or log -> ExplainReport."""

from collections.abc import Mapping

from ckptool.errors import UsageError
from ckptool.reports.explain import ExplainReport, build_explain_report
from ckptool.rules.fixes.commands import list_given_arguments
from ckptool.rules.known_errors.explain import explain_clean_log
from ckptool.rules.known_errors.known_error import ErrorFacts
from ckptool.rules.known_errors.log_text import clean_log


def explain(
    text: str | BaseException,
    source: str = "",
    *,
    module: str = "",
    kwargs: Mapping[str, object] | None = None,
    checkpoint: str = "",
) -> ExplainReport:
    """Explain the errors in a traceback or log: the probable cause, and what to do next.

    Nothing but the text is looked at. The report's `exit_code` is 2 if it has no known error.

    Args:
        text: a message, a traceback, a log, or an exception.
        source: how the report calls the text.
        module: "package.module:Name" that the commands of the report name; it is not imported. ""
            leaves a word in capitals in its place.
        kwargs: arguments of its constructor, for the same commands.
        checkpoint: path of the checkpoint, which is not opened; "" takes the one in the traceback.

    Raises:
        UsageError: `module` is not of that form.
    """
    if module and ":" not in module:
        example = f"{module}:Name" if module.endswith(".py") else "package.module:Name"
        raise UsageError(f"-m {module}: does not name a class: write {example}")
    arguments = list_given_arguments() or _format_arguments(kwargs or {})
    facts = ErrorFacts(checkpoint=checkpoint, module=module, arguments=arguments)
    log = clean_log(_format_exception(text) if isinstance(text, BaseException) else text)
    line_count = sum(1 for line in log.lines if line.strip())
    errors = explain_clean_log(log, facts)
    return build_explain_report(errors, source, line_count, log.omitted_chars)


def _format_arguments(kwargs: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(word for name, value in kwargs.items() for word in ("-k", f"{name}={value!r}"))


def _format_exception(error: BaseException) -> str:
    from traceback import format_exception

    return "".join(format_exception(error))

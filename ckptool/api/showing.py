"""A report -> the text that the command prints of it."""

from ckptool.errors import UsageError
from ckptool.render import FORMATS, Style, render
from ckptool.report import AnyReport


def text(report: AnyReport, format_: str = "table", *, width: int | None = 100) -> str:
    """Return what the command prints of a report: for a notebook, a log, or a pull request.

    Args:
        report: what another function returned.
        format_: "table", "json", "markdown", "html", "github", "gitlab", "sarif" or "junit".
        width: columns of a table; None neither wraps nor cuts.

    Raises:
        UsageError: there is no such format.
    """
    if format_ not in FORMATS:
        raise UsageError(f"no format is called {format_!r}: known are {', '.join(FORMATS)}")
    return render(format_, report, Style(width=width))

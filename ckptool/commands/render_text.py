"""Report -> text, as the command prints it."""

from typing import TYPE_CHECKING

from ckptool.errors import UsageError
from ckptool.render import FORMATS, RenderOptions, render

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport


def text(report: "AnyReport", format_: str = "table", *, width: int | None = 100) -> str:
    """Render a report as the command prints it: for a notebook, a log, or a pull request.

    Args:
        report: result of another function of this package.
        format_: "table", "json", "markdown", "html", "github", "gitlab", "sarif" or "junit".
        width: width of a table in characters; None neither wraps nor truncates.

    Raises:
        UsageError: the format does not exist.
    """
    if format_ not in FORMATS:
        raise UsageError(f"no format is called {format_!r}: known are {', '.join(FORMATS)}")
    return render(format_, report, RenderOptions(width=width))

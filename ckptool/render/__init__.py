"""Report -> text in one of `FORMATS`. A renderer is a pure function; the CLI writes the text."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport


FORMATS: Final = ("table", "json", "markdown", "html", "github", "gitlab", "sarif", "junit")


class RenderOptions(Struct, frozen=True):
    """Options of the formats for people; machine formats use `root` at most."""

    width: int | None = None
    """Columns of the terminal; None: neither truncate nor wrap."""
    color: bool = False
    unicode: bool = True
    """Whether tree lines and bars use Unicode; False: ASCII."""
    verbosity: int = 0
    """-1: the verdict only; 0: repeated layers folded; 1: everything."""
    root: Path | None = None
    """Directory that paths inside it are reported relative to; None: paths as given."""


def render(format_: str, report: "AnyReport", options: RenderOptions) -> str:
    """Render `report` as `format_`; the format's module is imported here, with its dependencies."""
    text: str = import_module(f"{__name__}.{format_}").render(report, options)
    return text

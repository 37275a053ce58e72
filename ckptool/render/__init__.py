"""Report -> text. A renderer is a pure function; the CLI decides where the text goes."""

from importlib import import_module
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckptool.report import AnyReport

FORMATS: Final = ("table", "json", "markdown", "html", "github", "gitlab", "sarif", "junit")


class Style(Struct, frozen=True):
    """How a report is to look; only formats for people read it."""

    width: int | None = None
    """Columns of the terminal; None does not cut or wrap."""
    color: bool = False
    unicode: bool = True
    """Whether lines and bars can be drawn; else ASCII has to do."""
    verbosity: int = 0
    """-1: the verdict only; 0: repeated layers folded; 1: everything."""
    root: Path | None = None
    """Where relative paths of the report start; paths inside it are written relative to it."""


def render(format_: str, report: AnyReport, style: Style) -> str:
    """Render `report`; the renderer's module is imported only now, with what it depends on."""
    text: str = import_module(f"{__name__}.{format_}").render(report, style)
    return text

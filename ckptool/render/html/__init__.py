"""Report -> one page for a browser: no script, nothing from a network, light and dark, print."""

from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from ckptool.render import Style
from ckptool.render.html.page import page
from ckptool.render.text import printable
from ckptool.report import AnyReport


def _shown(value: object) -> object:
    """Escape what a browser would obey or hide; what Jinja marks as markup is ours."""
    return printable(value) if type(value) is str else value


_PAGES: Final = Environment(
    loader=PackageLoader(__name__),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(report: AnyReport, style: Style) -> str:
    text: str = _PAGES.get_template("page.html").render(page=page(report, style))
    return text

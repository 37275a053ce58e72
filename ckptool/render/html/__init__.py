"""Report -> one HTML page: no scripts, no network requests, light and dark theme, printable."""

from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from ckptool.render import Style
from ckptool.render.html.page import page
from ckptool.render.html.parts import Frame, Tile, words
from ckptool.render.text import cut, printable
from ckptool.report import AnyReport

_PATTERNS: Final = {
    "d1": "M0 8L8 0",
    "d2": "M2 2h2M6 6h2",
    "d3": "M0 4h8",
    "d4": "M0 0L8 8",
    "d5": "M4 0v8",
    "d6": "M0 8L8 0M0 0L8 8",
    "d7": "M0 4h8M4 0v8",
    "rx": "M0 4h8",
    "ra": "M2 4h4M4 2v4",
    "rd": "M0 8L8 0M0 0L8 8",
    "rs": "M0 8L8 0",
}
"""Tone -> SVG path of its hatching, so that tiles differ in more than colour."""


def render(report: AnyReport, style: Style) -> str:
    template = _environment().get_template("page.html")
    return template.render(page=page(report, style), patterns=tuple(_PATTERNS.items()))


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(__name__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(cut=cut, short=_short, outline=_outline, words=words)
    return made


def _shown(value: object) -> object:
    """Escape control and bidi characters in plain strings; Markup comes from our templates."""
    return printable(value) if type(value) is str else value


def _short(number: float) -> str:
    """Format a coordinate with at most one decimal."""
    return f"{number:.1f}".removesuffix(".0")


def _outline(box: Tile | Frame) -> str:
    wide, high = _short(box.width), _short(box.height)
    return f"M{_short(box.x)} {_short(box.y)}h{wide}v{high}h-{wide}z"

"""Report -> one HTML page: no scripts, no network requests, light and dark theme, printable."""

from typing import TYPE_CHECKING, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from ckptool.phrases import make_printable
from ckptool.render import RenderOptions
from ckptool.render.html.components import ModuleFrame, TreemapTile
from ckptool.render.html.page import build_page
from ckptool.render.text import split_code_spans, truncate_middle

if TYPE_CHECKING:
    from ckptool.reports.any_report import AnyReport

_HATCH_PATTERNS: Final = {
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


def render(report: "AnyReport", options: RenderOptions) -> str:
    template = _create_environment().get_template("page.html")
    return template.render(
        page=build_page(report, options), patterns=tuple(_HATCH_PATTERNS.items())
    )


def _create_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__name__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_escape_value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        cut=truncate_middle,
        short=_format_coordinate,
        outline=_format_box_path,
        words=split_code_spans,
    )
    return environment


def _escape_value(value: object) -> object:
    """Escape control and bidi characters in plain strings; Markup comes from our templates."""
    return make_printable(value) if type(value) is str else value


def _format_coordinate(number: float) -> str:
    """Format a coordinate with at most one decimal."""
    return f"{number:.1f}".removesuffix(".0")


def _format_box_path(box: TreemapTile | ModuleFrame) -> str:
    width, height = _format_coordinate(box.width), _format_coordinate(box.height)
    return f"M{_format_coordinate(box.x)} {_format_coordinate(box.y)}h{width}v{height}h-{width}z"

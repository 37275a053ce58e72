"""TensorValuesReport -> blocks: the values as torch prints them, and a picture in characters."""

from collections.abc import Iterator
from typing import Final

from ckptool.render import RenderOptions
from ckptool.render.blocks import Block, LinesBlock
from ckptool.reports.details.tensor_values import NOT_FINITE, TensorValuesReport

_LINE_SHADES: Final = "▁▂▃▄▅▆▇█"
_GRID_SHADES: Final = " ·░▒▓▓██"
_ASCII_SHADES: Final = " .:-=+*#"
_NOT_FINITE_SIGN: Final = "!"


def build_values_blocks(values: TensorValuesReport, options: RenderOptions) -> Iterator[Block]:
    """Yield the name, the values, and a picture of a small tensor: a row of bars, or a grid."""
    kind = f": {values.dtype} {list(values.shape)}" if values.dtype else ""
    text = values.text or f"not shown: {values.reason}"
    yield LinesBlock((f"`{values.place}`{kind}", *text.splitlines()))
    if values.shades:
        yield LinesBlock(tuple(_iter_picture_lines(values, options)))


def _iter_picture_lines(values: TensorValuesReport, options: RenderOptions) -> Iterator[str]:
    is_line = len(values.shades) == 1
    shades = _LINE_SHADES if is_line else _GRID_SHADES
    shades = shades if options.unicode else _ASCII_SHADES
    for row in values.shades:
        yield "|" + "".join(_NOT_FINITE_SIGN if n == NOT_FINITE else shades[n] for n in row) + "|"
    has_gaps = any(n == NOT_FINITE for row in values.shades for n in row)
    note = f"; `{_NOT_FINITE_SIGN}` is not finite" if has_gaps else ""
    yield f"from {values.least:.4g} (`{shades[0]}`) to {values.largest:.4g} (`{shades[-1]}`){note}"

"""TensorValuesReport: values of one key as torch prints them, and shades of a small tensor."""

from math import isfinite
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import Preview, TensorInfo

SHADE_COUNT: Final = 8
"""Shades of a picture: 0 is the least value, 7 the largest."""
NOT_FINITE: Final = -1
"""Shade of NaN and of infinities."""


class TensorValuesReport(Struct, frozen=True, kw_only=True):
    """Values of one tensor, or one plain value."""

    place: str
    dtype: str = ""
    """"" for a plain value."""
    shape: tuple[int, ...] = ()
    text: str = ""
    """As torch prints it, shortened; "" if it was not read."""
    reason: str = ""
    """Why the values are not shown, else ""."""
    shades: tuple[tuple[int, ...], ...] = ()
    """Rows of 0 (least value) to 7 (largest); -1 is not finite. () if it is not small."""
    least: float | None = None
    largest: float | None = None
    """Of the finite values that are shaded; None without any."""


def build_values_report(
    place: str, tensor: TensorInfo, text: str, reason: str, preview: Preview | None
) -> TensorValuesReport:
    """Build the report of a tensor's values, with shades if the preview shows all of them."""
    report = TensorValuesReport(
        place=place, dtype=tensor.dtype, shape=tensor.shape, text=text, reason=reason
    )
    return report if preview is None or not preview.is_complete else _add_shades(report, preview)


def _add_shades(report: TensorValuesReport, preview: Preview) -> TensorValuesReport:
    finite = [value for row in preview.rows for value in row if isfinite(value)]
    if not finite:
        return report
    least, largest = min(finite), max(finite)
    width = (largest - least) or 1

    def choose_shade(value: float) -> int:
        if not isfinite(value):
            return NOT_FINITE
        return min(int((value - least) / width * SHADE_COUNT), SHADE_COUNT - 1)

    shades = tuple(tuple(map(choose_shade, row)) for row in preview.rows)
    return replace(report, shades=shades, least=least, largest=largest)

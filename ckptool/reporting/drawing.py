"""TensorPreview -> PictureReport: shades of a heatmap and their legend."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf, isfinite, isnan
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.grids import Preview
from ckptool.model import TensorInfo
from ckptool.previews import FEW
from ckptool.report import DrawingReport, PictureReport, Report
from ckptool.reporting.parts import tensor_report

R = TypeVar("R", bound=Report)
NOT_FINITE: Final = ("-inf", "inf", "NaN")


class Seen(Struct, frozen=True):
    """Preview of one tensor's values; `source` is "file", "module", "old" or "new"."""

    tensor: TensorInfo
    of: str
    preview: Preview


def drawn(
    report: R,
    tensors: Iterable[TensorInfo],
    expected: Iterable[TensorInfo],
    seen: Iterable[Sequence[Seen]],
) -> R:
    """Return the report with the data of its charts.

    Args:
        report: the report without `drawing`.
        tensors: tensors of the file, or of the new one of two files.
        expected: tensors of the module's state_dict, or of the old file.
        previews: for each key its previews, one for each side.
    """
    return replace(
        report,
        drawing=DrawingReport(
            tensors=tuple(tensor_report(t, t.kind) for t in tensors),
            expected=tuple(tensor_report(t, t.kind) for t in expected),
            pictures=tuple(picture for sides in seen for picture in pictures(sides)),
        ),
    )


def pictures(sides: Sequence[Seen]) -> tuple[PictureReport, ...]:
    """Build the pictures of one key, with a common legend."""
    cells = {cell for side in sides for row in side.preview.rows for cell in row}
    finite = sorted({cell for cell in cells if isfinite(cell)})
    edges = finite if len(finite) <= FEW else _edges(finite[0], finite[-1])
    names = _names(edges, exact=len(finite) <= FEW)
    odd = sorted({_odd(cell) for cell in cells if not isfinite(cell)}, key=NOT_FINITE.index)
    places = {name: len(names) + i for i, name in enumerate(odd)}

    def place(cell: float) -> int:
        if not isfinite(cell):
            return places[_odd(cell)]
        return min(bisect_right(edges, cell), len(names)) - 1

    return tuple(
        PictureReport(
            key=side.tensor.key,
            of=side.of,
            shape=side.tensor.shape,
            dtype=side.tensor.dtype,
            whole=side.preview.whole,
            legend=(*names, *odd),
            finite=len(names),
            rows=tuple(tuple(map(place, row)) for row in side.preview.rows),
        )
        for side in sides
    )


def _edges(low: float, high: float) -> list[float]:
    """Return the lower bounds of the ranges and the upper bound of the last one."""
    # Not low + i * step: the step overflows to infinity if low and high are of opposite sign
    # and near the largest float64.
    return [low, *(low * (1 - i / FEW) + high * (i / FEW) for i in range(1, FEW)), high]


def _names(edges: list[float], *, exact: bool) -> tuple[str, ...]:
    if exact:
        return tuple(_short(edge) for edge in edges)
    return tuple(f"{_short(a)} to {_short(b)}" for a, b in pairwise(edges))


def _short(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.4g}"


def _odd(cell: float) -> str:
    """Return the label of a non-finite value, one of `NON_FINITE_LABELS`."""
    return "NaN" if isnan(cell) else "inf" if cell == inf else "-inf"

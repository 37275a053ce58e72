"""TensorPreview -> PictureReport: shades of a heatmap and their legend."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf, isfinite, isnan
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import Preview, TensorInfo
from ckptool.reports.common import DrawingReport, PictureReport, Report, build_tensor_report
from ckptool.values.previews import MAX_DISTINCT

R = TypeVar("R", bound=Report)
NON_FINITE_LABELS: Final = ("-inf", "inf", "NaN")


class TensorPreview(Struct, frozen=True):
    """Preview of one tensor's values; `source` is "file", "module", "old" or "new"."""

    tensor: TensorInfo
    source: str
    preview: Preview


def with_pictures(
    report: R,
    tensors: Iterable[TensorInfo],
    expected: Iterable[TensorInfo],
    previews: Iterable[Sequence[TensorPreview]],
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
            tensors=tuple(build_tensor_report(t, t.kind) for t in tensors),
            expected=tuple(build_tensor_report(t, t.kind) for t in expected),
            pictures=tuple(
                picture for sides in previews for picture in build_picture_reports(sides)
            ),
        ),
    )


def build_picture_reports(sides: Sequence[TensorPreview]) -> tuple[PictureReport, ...]:
    """Build the pictures of one key, with a common legend."""
    cells = {cell for side in sides for row in side.preview.rows for cell in row}
    finite = sorted({cell for cell in cells if isfinite(cell)})
    edges = finite if len(finite) <= MAX_DISTINCT else _compute_range_edges(finite[0], finite[-1])
    labels = _format_range_labels(edges, exact=len(finite) <= MAX_DISTINCT)
    non_finite = sorted(
        {_name_non_finite(cell) for cell in cells if not isfinite(cell)},
        key=NON_FINITE_LABELS.index,
    )
    non_finite_indices = {name: len(labels) + i for i, name in enumerate(non_finite)}

    def find_label_index(cell: float) -> int:
        if not isfinite(cell):
            return non_finite_indices[_name_non_finite(cell)]
        return min(bisect_right(edges, cell), len(labels)) - 1

    return tuple(
        PictureReport(
            key=side.tensor.key,
            of=side.source,
            shape=side.tensor.shape,
            dtype=side.tensor.dtype,
            whole=side.preview.is_complete,
            legend=(*labels, *non_finite),
            finite=len(labels),
            rows=tuple(tuple(map(find_label_index, row)) for row in side.preview.rows),
        )
        for side in sides
    )


def _compute_range_edges(low: float, high: float) -> list[float]:
    """Return the lower bounds of the ranges and the upper bound of the last one."""
    # Not low + i * step: the step overflows to infinity if low and high are of opposite sign
    # and near the largest float64.
    return [
        low,
        *(low * (1 - i / MAX_DISTINCT) + high * (i / MAX_DISTINCT) for i in range(1, MAX_DISTINCT)),
        high,
    ]


def _format_range_labels(edges: list[float], *, exact: bool) -> tuple[str, ...]:
    if exact:
        return tuple(_format_number(edge) for edge in edges)
    return tuple(f"{_format_number(a)} to {_format_number(b)}" for a, b in pairwise(edges))


def _format_number(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.4g}"


def _name_non_finite(cell: float) -> str:
    """Return the label of a non-finite value, one of `NON_FINITE_LABELS`."""
    return "NaN" if isnan(cell) else "inf" if cell == inf else "-inf"

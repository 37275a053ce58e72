"""ChangeReport histograms (counts by decade) -> HistogramsSection."""

from collections.abc import Iterator
from math import log10
from typing import Final

from ckptool.phrases import pluralize
from ckptool.render.html.components import ChangeHistogram, HistogramBar, HistogramsSection
from ckptool.reports.diff_files import ChangeReport

WIDTH: Final = 17 * 14
HEIGHT: Final = 72
_FIRST_DECADE: Final = -12
_MAX_HISTOGRAMS: Final = 18


def build_histograms_section(
    id_: str, title: str, changes: tuple[ChangeReport, ...]
) -> HistogramsSection | None:
    """Build a histogram of absolute differences for each tensor; None if no counts exist."""
    measured_changes = [change for change in changes if any(change.histogram)]
    if not measured_changes:
        return None
    return HistogramsSection(
        id=id_,
        title=title,
        histograms=tuple(map(_build_histogram, measured_changes[:_MAX_HISTOGRAMS])),
        more=max(len(measured_changes) - _MAX_HISTOGRAMS, 0),
    )


def _build_histogram(change: ChangeReport) -> ChangeHistogram:
    parts = [f"{change.changed:,} of {pluralize(change.elements, 'element')} changed"]
    if change.relative_l2 is not None:
        parts.append(f"relative change {change.relative_l2:.3g}")
    if change.max_abs is not None:
        parts.append(f"largest {change.max_abs:.3g}")
    return ChangeHistogram(change.key, ", ".join(parts), tuple(_iter_bars(change.histogram)))


def _iter_bars(counts: tuple[int, ...]) -> Iterator[HistogramBar]:
    max_log_count = log10(1 + max(counts))
    for index, element_count in enumerate(counts):
        height = round(HEIGHT * log10(1 + element_count) / max_log_count, 1)
        yield HistogramBar(
            index * 14 + 1,
            HEIGHT - height,
            height,
            _format_decade(index, len(counts)),
            element_count,
        )


def _format_decade(index: int, range_count: int) -> str:
    """Return "1e-12 to 1e-11"; the first and last of `range_count` decades are open-ended."""
    if index == 0:
        return f"below 1e{_FIRST_DECADE}"
    if index == range_count - 1:
        return f"1e{_FIRST_DECADE + index - 1} and more"
    return f"1e{_FIRST_DECADE + index - 1} to 1e{_FIRST_DECADE + index}"

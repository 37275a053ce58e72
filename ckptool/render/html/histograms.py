"""ChangeReport histograms (counts by decade) -> HistogramsSection."""

from collections.abc import Iterator
from math import log10
from typing import Final

from ckptool.render.html.parts import Bar, Histogram, Histograms
from ckptool.render.text import count
from ckptool.report import ChangeReport

WIDTH: Final = 17 * 14
HEIGHT: Final = 72
_FIRST: Final = -12
_MOST: Final = 18


def histograms(id_: str, title: str, changes: tuple[ChangeReport, ...]) -> Histograms | None:
    """Build a histogram of absolute differences for each tensor; None if no counts exist."""
    measured = [change for change in changes if any(change.histogram)]
    if not measured:
        return None
    return Histograms(
        id=id_,
        title=title,
        histograms=tuple(map(_histogram, measured[:_MOST])),
        more=max(len(measured) - _MOST, 0),
    )


def _histogram(change: ChangeReport) -> Histogram:
    said = [f"{change.changed:,} of {count(change.elements, 'element')} changed"]
    if change.relative_l2 is not None:
        said.append(f"relative change {change.relative_l2:.3g}")
    if change.max_abs is not None:
        said.append(f"largest {change.max_abs:.3g}")
    return Histogram(change.key, ", ".join(said), tuple(_bars(change.histogram)))


def _bars(counts: tuple[int, ...]) -> Iterator[Bar]:
    most = log10(1 + max(counts))
    for place, number in enumerate(counts):
        high = round(HEIGHT * log10(1 + number) / most, 1)
        yield Bar(place * 14 + 1, HEIGHT - high, high, _range(place, len(counts)), number)


def _range(place: int, ranges: int) -> str:
    """Return "1e-12 to 1e-11"; the first and last of `range_count` decades are open-ended."""
    if place == 0:
        return f"below 1e{_FIRST}"
    if place == ranges - 1:
        return f"1e{_FIRST + place - 1} and more"
    return f"1e{_FIRST + place - 1} to 1e{_FIRST + place}"

"""Sizes -> Boxes that fill a rectangle, as square as possible (Bruls and others, 2000)."""

from collections.abc import Iterator, Sequence

from msgspec import Struct


class Box(Struct, frozen=True):
    """A rectangle; x and y are its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        return self.width * self.height

    def inside(self, edge: float, top: float) -> "Box":
        """Return the box inside margins: `edge` at the left, right and bottom, `top` above."""
        width, height = self.width - 2 * edge, self.height - top - edge
        return Box(self.x + edge, self.y + top, max(width, 0), max(height, 0))


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Return a box for each size, in order; sizes are positive and descending.

    Iterative, unlike the package of this name: a crafted file can have more rows than the
    recursion limit.
    """
    scale = box.area / sum(sizes) if sizes else 0
    areas = [size * scale for size in sizes]
    boxes: list[Box] = []
    while len(boxes) < len(areas):
        row = _row(areas[len(boxes) :], min(box.width, box.height))
        placed, box = _place(row, box)
        boxes.extend(placed)
    return boxes


def _row(areas: Sequence[float], side: float) -> Sequence[float]:
    """Return the leading areas that minimize the worst aspect ratio of the row."""
    total, best = 0.0, float("inf")
    for count, area in enumerate(areas):
        total += area
        worst = _worst(areas[0], area, total, side)
        if worst > best:
            return areas[:count]
        best = worst
    return areas


def _worst(largest: float, smallest: float, total: float, side: float) -> float:
    """Return the worst aspect ratio of a row, at least 1; 0 if an area or the side is 0."""
    thick = total * total
    long = side * side
    return max(long * largest / thick, thick / (long * smallest)) if long * smallest else 0.0


def _place(row: Sequence[float], box: Box) -> tuple[Iterator[Box], Box]:
    """Lay the row along the shorter side; return its boxes and the remaining box."""
    total = sum(row)
    if box.width >= box.height:
        wide = min(total / box.height, box.width) if box.height else 0.0
        rest = Box(box.x + wide, box.y, max(box.width - wide, 0), box.height)
        return _along(row, Box(box.x, box.y, wide, box.height), upright=True), rest
    high = min(total / box.width, box.height) if box.width else 0.0
    rest = Box(box.x, box.y + high, box.width, max(box.height - high, 0))
    return _along(row, Box(box.x, box.y, box.width, high), upright=False), rest


def _along(row: Sequence[float], box: Box, *, upright: bool) -> Iterator[Box]:
    total, start = sum(row), 0.0
    for area in row:
        share = area / total if total else 0.0
        if upright:
            yield Box(box.x, box.y + start, box.width, share * box.height)
            start += share * box.height
        else:
            yield Box(box.x + start, box.y, share * box.width, box.height)
            start += share * box.width

"""Sizes -> rectangles that fill another and are as square as can be (Bruls and others, 2000)."""

from collections.abc import Iterator, Sequence

from msgspec import Struct


class Box(Struct, frozen=True):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        return self.width * self.height

    def inside(self, edge: float, top: float) -> "Box":
        """Return what an edge, and a title at the top, leave of it."""
        width, height = self.width - 2 * edge, self.height - top - edge
        return Box(self.x + edge, self.y + top, max(width, 0), max(height, 0))


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Return a rectangle for each size, in order; the sizes are positive, the largest first.

    A package of this name exists. It recurses once a row, of which a crafted file can make many.
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
    """Return the first areas, as many as make the worst of them as square as can be."""
    total, best = 0.0, float("inf")
    for count, area in enumerate(areas):
        total += area
        worst = _worst(areas[0], area, total, side)
        if worst > best:
            return areas[:count]
        best = worst
    return areas


def _worst(largest: float, smallest: float, total: float, side: float) -> float:
    thick = total * total
    long = side * side
    return max(long * largest / thick, thick / (long * smallest)) if long * smallest else 0.0


def _place(row: Sequence[float], box: Box) -> tuple[Iterator[Box], Box]:
    """Lay the row along the shorter side, and return what is left."""
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

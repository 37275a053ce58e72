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

    def shrink_by(self, edge: float, top: float) -> "Box":
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
        row = _take_row(areas[len(boxes) :], min(box.width, box.height))
        row_boxes, box = _place_row(row, box)
        boxes.extend(row_boxes)
    return boxes


def _take_row(areas: Sequence[float], row_length: float) -> Sequence[float]:
    """Return the leading areas that minimize the worst aspect ratio of the row."""
    total, best_ratio = 0.0, float("inf")
    for count, area in enumerate(areas):
        total += area
        worst_ratio = _compute_worst_ratio(areas[0], area, total, row_length)
        if worst_ratio > best_ratio:
            return areas[:count]
        best_ratio = worst_ratio
    return areas


def _compute_worst_ratio(largest: float, smallest: float, total: float, row_length: float) -> float:
    """Return the worst aspect ratio of a row, at least 1; 0 if an area or the side is 0."""
    total_squared = total * total
    side_squared = row_length * row_length
    return (
        max(side_squared * largest / total_squared, total_squared / (side_squared * smallest))
        if side_squared * smallest
        else 0.0
    )


def _place_row(row: Sequence[float], box: Box) -> tuple[Iterator[Box], Box]:
    """Lay the row along the shorter side; return its boxes and the remaining box."""
    total = sum(row)
    if box.width >= box.height:
        width = min(total / box.height, box.width) if box.height else 0.0
        remaining = Box(box.x + width, box.y, max(box.width - width, 0), box.height)
        return _iter_row_boxes(row, Box(box.x, box.y, width, box.height), vertical=True), remaining
    height = min(total / box.width, box.height) if box.width else 0.0
    remaining = Box(box.x, box.y + height, box.width, max(box.height - height, 0))
    return _iter_row_boxes(row, Box(box.x, box.y, box.width, height), vertical=False), remaining


def _iter_row_boxes(row: Sequence[float], box: Box, *, vertical: bool) -> Iterator[Box]:
    total, start = sum(row), 0.0
    for area in row:
        share = area / total if total else 0.0
        if vertical:
            yield Box(box.x, box.y + start, box.width, share * box.height)
            start += share * box.height
        else:
            yield Box(box.x + start, box.y, share * box.width, box.height)
            start += share * box.width

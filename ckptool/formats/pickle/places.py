"""Nested keys -> places of bounded length: one long key may contain thousands of nodes."""

from typing import Final

MAX_PLACE_CHARS: Final = 500
_KEPT_CHARS: Final = 200
"""Characters kept of the start and of the end of a place that is cut."""


class PlaceJoiner:
    """Joins the places of one file; those above `MAX_PLACE_CHARS` are cut and stay distinct.

    A file of n bytes can nest n / 4 dicts under one memoised key of n / 2 characters, so that whole
    places would take n * n characters.
    """

    def __init__(self) -> None:
        self.cut_count = 0
        """Number of places that were cut."""

    def join(self, place: str, key: str, separator: str = ".") -> str:
        """Return place + separator + key; in a long one "...[cut N]..." stands for its middle.

        N counts the cut places of the file, in the order in which they are met.
        """
        length = len(place) + len(separator) + len(key)
        if length <= MAX_PLACE_CHARS:
            return f"{place}{separator}{key}"
        self.cut_count += 1
        head = f"{place[:_KEPT_CHARS]}{separator}{key[:_KEPT_CHARS]}"[:_KEPT_CHARS]
        tail = f"{place[-_KEPT_CHARS:]}{separator}{key[-_KEPT_CHARS:]}"[-_KEPT_CHARS:]
        return f"{head}...[cut {self.cut_count}]...{tail}"

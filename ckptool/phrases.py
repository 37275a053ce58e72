"""Counts, lists and untrusted text -> short phrases that are safe to print."""

from collections.abc import Callable, Collection
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def pluralize(number: int, noun: str, separator: str = ",") -> str:
    """Format a count and its noun: "1 key", "2 keys", "1,000 keys".

    `separator` stands between thousands; "" for none.
    """
    return f"{number:{separator}} {noun}{'' if number == 1 else 's'}"


def join_limited(
    items: Collection[T],
    limit: int,
    format_item: Callable[[T], str] = str,
    *,
    more: str = " and {} more",
) -> str:
    """Join the first `limit` items with commas: "a, b and 3 more"; "" without items.

    `more` is added if items are left out, with their number in place of "{}".
    """
    shown = ", ".join(map(format_item, islice(items, limit)))
    return shown + more.format(len(items) - limit) if len(items) > limit else shown


def quote_code(text: str) -> str:
    """Return `text` in backticks, as messages name keys."""
    return f"`{text}`"


def truncate(text: str, length: int) -> str:
    """Return `text`, or its first `length` characters and "..." if it is longer."""
    return text if len(text) <= length else f"{text[:length]}..."


def make_printable(text: str) -> str:
    """Escape unprintable characters: control characters, bidi marks, surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

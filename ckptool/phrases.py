"""Counts, lists and untrusted text -> short phrases that are safe to print."""

from collections.abc import Callable, Collection
from itertools import islice
from typing import Final, TypeVar

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
    """Return `text` in backticks, as messages name keys; a very long one is cut."""
    return f"`{cut_middle(text)}`"


def truncate(text: str, length: int) -> str:
    """Return `text`, or its first `length` characters and "..." if it is longer."""
    return text if len(text) <= length else f"{text[:length]}..."


MAX_KEY_CHARS: Final = 300
"""Characters of a key, a place or a table's cell in the formats for people; JSON has all of it."""


def cut_middle(text: str, limit: int = MAX_KEY_CHARS) -> str:
    """Return `text`, or its two ends and its length if it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    length_note = f"...[{len(text):,} characters]..."
    kept_chars = max(0, limit - len(length_note)) // 2
    return f"{text[:kept_chars]}{length_note}{text[len(text) - kept_chars :]}"


def quote_python(text: str) -> str:
    """Return `text` as a Python string in double quotes: unprintable characters are escaped."""
    escaped_text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{make_printable(escaped_text)}"'


def quote_shell(text: str) -> str:
    """Return `text` as one word of a shell; unprintable characters as bash, ksh and zsh read them.

    Nothing in it is run, expanded or taken for an option's end.
    """
    import shlex

    if text.isprintable():
        return shlex.quote(text)
    return "$'" + make_printable(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def make_printable(text: str) -> str:
    """Escape unprintable characters: control characters, bidi marks, surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

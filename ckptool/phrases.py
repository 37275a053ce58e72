"""Counts, lists and untrusted text -> short phrases that are safe to print."""

import re
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Final, TypeVar

T = TypeVar("T")

_LITERAL_TYPES: Final = (type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set)

_MAX_MESSAGE_LENGTH: Final = 300
_MIN_CUT_LENGTH: Final = 60
"""Characters of a line that is shown in part; with less room it is left out."""
_MAX_QUOTED_KEYS: Final = 3
"""Maximum keys of torch's lists `"a", "b", ...` that are shown."""
_COLOR_CODE: Final = re.compile(r"\x1b\[[0-9;]*m")
"""A terminal's code for a colour or bold text, as torch has in some messages."""


def pluralize(number: int, noun: str, separator: str = ",") -> str:
    """Format a count and its noun: "1 key", "2 keys", "1,000 keys".

    `separator` stands between thousands; "" for none.
    """
    return f"{number:{separator}} {noun}{'' if number == 1 else 's'}"


def format_size(nbytes: int) -> str:
    """Format bytes in B, KiB or MiB; no larger units, so that columns compare at a glance."""
    if nbytes < 1 << 10:
        return f"{nbytes} B"
    if nbytes < 1 << 20:
        return f"{nbytes / (1 << 10):.1f} KiB"
    return f"{nbytes / (1 << 20):,.1f} MiB"


def pluralize_mismatches(number: int) -> str:
    """Format a count of tensors whose shape differs: "1 shape mismatch", "2 shape mismatches"."""
    return f"{number:,} shape mismatch{'' if number == 1 else 'es'}"


def join_limited(
    items: Collection[T],
    limit: int,
    format_item: Callable[[T], str] | None = None,
    *,
    more: str = " and {} more",
) -> str:
    """Join the first `limit` items with commas: "a, b and 3 more"; "" without items.

    `format_item` gives the text of an item, by default the item itself, cut if it is very long.
    `more` is added if items are left out, with their number in place of "{}".
    """
    texts = map(format_item or _cut_item, islice(items, limit))
    shown = ", ".join(texts)
    return shown + more.format(len(items) - limit) if len(items) > limit else shown


def describe_missing_parts(names: Sequence[str]) -> str:
    """Return that a sharded checkpoint is incomplete, and the way out.

    Args:
        names: shards and tensors that the index names and that do not exist.
    """
    verb = "does" if len(names) == 1 else "do"
    return (
        f"is not complete: the index names {join_limited(names, MAX_NAMED, quote_code)}, which"
        f" {verb} not exist: download it again, or rebuild the index"
    )


def _cut_item(item: object) -> str:
    return cut_middle(str(item))


def quote_code(text: str) -> str:
    """Return `text` in backticks, as messages name keys; a very long one is cut."""
    return f"`{cut_middle(text)}`"


def truncate(text: str, length: int) -> str:
    """Return `text`, or its first `length` characters and "..." if it is longer."""
    return text if len(text) <= length else f"{text[:length]}..."


def summarize_message(text: str) -> str:
    """Join the lines of an exception's message to one of about 300 characters.

    The first lines are kept; what is left out is counted, lines as well as the keys of a list. ""
    for an empty text.
    """
    plain_text = _COLOR_CODE.sub("", text)
    lines = [_shorten_key_list(" ".join(line.split())) for line in plain_text.splitlines()]
    lines = _select_telling_lines([line for line in lines if line])
    shown: list[str] = []
    room = _MAX_MESSAGE_LENGTH
    for line in lines:
        if len(line) > room and room < _MIN_CUT_LENGTH:
            break
        shown.append(truncate(line, room))
        room -= len(line) + 1
    omitted_count = len(lines) - len(shown)
    more = f" and {pluralize(omitted_count, 'more line')}" if omitted_count else ""
    return " ".join(shown) + more


def _shorten_key_list(line: str) -> str:
    keys = line.split('", "')
    if len(keys) <= _MAX_QUOTED_KEYS:
        return line
    shown = '", "'.join(keys[:_MAX_QUOTED_KEYS])
    return f'{shown}" and {len(keys) - _MAX_QUOTED_KEYS:,} more.'


def _select_telling_lines(lines: list[str]) -> list[str]:
    """Return the first line and the one that names the cause, where long advice is in between."""
    for i, line in enumerate(lines[1:], start=1):
        if line.startswith("Traceback"):
            return [lines[0], lines[-1]]
        if line.startswith("WeightsUnpickler error"):
            return [lines[0], lines[i]]
    return lines


MAX_NAMED: Final = 20
"""Names in one message that lists what there is instead of what was asked for."""
MAX_KEY_CHARS: Final = 300
"""Characters of a key, a place or a table's cell in the formats for people; JSON has all of it."""


MAX_LINE_CHARS: Final = 4000
"""Characters of one line, message or fix; only keys from hostile files make longer ones."""


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


def format_literal(value: object) -> str:
    """Return the value as a Python literal, which `-k` reads; "..." for what no literal says."""
    import ast

    if not isinstance(value, _LITERAL_TYPES):
        return "..."
    text = repr(value)
    try:
        return text if ast.literal_eval(text) == value else "..."
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return "..."


def quote_shell(text: str) -> str:
    """Return `text` as one word of a shell; unprintable characters as bash, ksh and zsh read them.

    Nothing in it is run, expanded or taken for an option's end.
    """
    import shlex

    if text.isprintable():
        is_plain_in_double_quotes = "'" in text and not set('"$`\\!') & set(text)
        return f'"{text}"' if is_plain_in_double_quotes else shlex.quote(text)
    return "$'" + make_printable(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def protect_path(path: str) -> str:
    """Return a path that no command takes for an option: "./-a.pth" for "-a.pth"."""
    return f"./{path}" if path.startswith("-") and path != "-" else path


def quote_path(path: str) -> str:
    """Return a path as one word of a shell, which no command takes for an option."""
    return quote_shell(protect_path(path))


def make_printable(text: str) -> str:
    """Escape unprintable characters: control characters, bidi marks, surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

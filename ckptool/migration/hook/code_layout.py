"""Parts of Python code -> lines as ruff format lays them out, at most 88 characters wide."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from ckptool.phrases import quote_python

LINE_WIDTH: Final = 88
INDENT: Final = "    "


def indent_lines(lines: Iterable[str]) -> list[str]:
    """Return the lines one level deeper."""
    return [f"{INDENT}{line}" if line else "" for line in lines]


def lay_out(
    head: str, items: Sequence[str], tail: str, *, depth: int = 0, comma: bool = False
) -> list[str]:
    """Return `head item, item tail` on one line if it fits, else an item a line.

    Args:
        head: up to and with the opening bracket.
        items: between the brackets.
        tail: from the closing bracket on.
        depth: levels of indentation that the lines will get.
        comma: whether one item alone needs a comma, as in a tuple.
    """
    single = "," if comma and len(items) == 1 else ""
    line = f"{head}{', '.join(items)}{single}{tail}"
    if len(line) + depth * len(INDENT) <= LINE_WIDTH or not items:
        return [line]
    return [head, *(f"{INDENT}{item}," for item in items), tail]


def lay_out_table(name: str, table: dict[str, str]) -> list[str]:
    """Return `NAME = {"old": "new", ...}`."""
    items = [f"{quote_python(old)}: {quote_python(new)}" for old, new in table.items()]
    return lay_out(f"{name} = {{", items, "}")


def lay_out_keys(name: str, keys: Sequence[str]) -> list[str]:
    """Return `NAME = ("key", ...)`."""
    return lay_out(f"{name} = (", [quote_python(key) for key in keys], ")", comma=True)


def write_comment(text: str, depth: int) -> list[str]:
    """Return the text as comment lines that are `depth` levels deep; [] for ""."""
    width = LINE_WIDTH - depth * len(INDENT)
    return textwrap.wrap(
        " ".join(text.split()), width, initial_indent="# ", subsequent_indent="# ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def lay_out_comprehension(head: str, parts: Sequence[str], tail: str, *, depth: int) -> list[str]:
    """Return `head part part tail` on one line, else its body on one, else a part a line."""
    room = LINE_WIDTH - depth * len(INDENT)
    line, body = f"{head}{' '.join(parts)}{tail}", f"{INDENT}{' '.join(parts)}"
    if len(line) <= room:
        return [line]
    return [head, *([body] if len(body) <= room else indent_lines(parts)), tail]


def assign_string(name: str, text: str, *, depth: int) -> list[str]:
    """Return `name = "text"`, in parentheses where that makes it fit."""
    room, string = LINE_WIDTH - depth * len(INDENT), quote_python(text)
    line = f"{name} = {string}"
    if len(line) <= room or len(string) + len(INDENT) > room:
        return [line]
    return [f"{name} = (", f"{INDENT}{string}", ")"]

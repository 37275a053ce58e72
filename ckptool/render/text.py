"""Text -> its commands and code, and what fits into a width."""

import re
from typing import Final

_WORD: Final = r"""(?:'[^'\n]*'|"[^"\n]*"|[^\s'"`;])+"""
COMMAND: Final = re.compile(rf"ckptool [a-z]+(?: {_WORD}(?<![,.:)]))*")
"""A command within a sentence, up to its punctuation."""


def split_code_spans(text: str) -> tuple[tuple[bool, str], ...]:
    """Split `text` at backticks into (is code, piece); unpaired backticks stay text."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return ((False, text),)
    return tuple((bool(i % 2), piece) for i, piece in enumerate(pieces) if piece)


def split_commands(text: str) -> tuple[tuple[bool, str], ...]:
    """Split the text of a fix into (is a command to paste, piece).

    A command in backticks, and one without a word after its name, are part of the sentence.
    """
    pieces: list[tuple[bool, str]] = []
    end = 0
    for match in COMMAND.finditer(text):
        is_quoted = text.count("`", 0, match.start()) % 2 == 1
        if match[0].count(" ") > 1 and not is_quoted:
            pieces += [(False, text[end : match.start()]), (True, match[0])]
            end = match.end()
    return tuple(
        (is_command, piece) for is_command, piece in (*pieces, (False, text[end:])) if piece
    )


def truncate_middle(text: str, width: int) -> str:
    """Replace the middle of `text` by "..." if it is longer than `width` characters."""
    if len(text) <= width:
        return text
    if width <= 5:
        return text[:width]
    tail = (width - 3) * 2 // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"

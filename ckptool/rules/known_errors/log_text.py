"""Text of a terminal or a log -> LogText: lines without colours and prefixes, found by words."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, islice
from typing import Final

from msgspec import Struct

MAX_CHARS: Final = 32_000_000
"""Characters of a log that are looked at: the first quarter, and the end."""
_MAX_PREFIXES: Final = 6
_MAX_CONTEXT_CHARS: Final = 40_000
"""Characters of a traceback before its message."""
_MAX_LINE_CHARS: Final = 4000
"""Characters of a piece of a line: where a message begins in it is looked for from its start."""
_TRACEBACK: Final = "Traceback (most recent call last)"
_ESCAPE: Final = re.compile(
    r"\x1b(?:\[[0-9;:?]{0,40}[ -/]{0,4}[@-~]|\][^\x07\x1b\n]{0,2000}(?:\x07|\x1b\\)?|[@-Z\\-_])"
)
_PREFIX: Final = re.compile(
    r"""\s{0,40}(?:
        \[[-\w./:]{1,60}\]:                                  # [rank0]: of torchrun
      | \[(?:rank|default|worker|node|gpu)[-_ ]?\d{1,6}\]    # [rank0], [default0]
      | \((?:\w{1,60}\ )?pid=\d{1,10}[^)\n]{0,80}\)          # (RayTrainWorker pid=12)
      | \[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]{0,12}(?:Z|[+-]\d\d:?\d\d)?\]?,?
      | \[?\d\d:\d\d:\d\d[.,\d]{0,8}\]?
      | [IWEF]\d{4}\ \d\d:\d\d:\d\d[.\d]{0,12}\ +\d{1,10}\ [^\]\n]{1,120}\]
      | [-\w.]{1,60}-?\d{0,6}\ {0,20}\|(?=\ |$)              # trainer-1  | of docker compose
      | \d{1,5}:(?=\ )                                       # 0: of srun --label
      | (?:DEBUG|INFO|WARNING|ERROR|CRITICAL)(?=\b):?
      | [-\w.]{1,80}:\d{1,6}:(?=\ )                          # file.py:12:
      | -\ (?:[\w.]{1,80}\ -\ )?
      | [>|](?=\ )
    )\ ?""",
    re.VERBOSE,
)
_RANK: Final = re.compile(r"\[(?:rank|default)(\d{1,6})\]|^\s{0,4}(\d{1,5}): ")


class LogText(Struct, frozen=True):
    """Cleaned lines of a log; words are searched for as if there were no spaces and line ends."""

    lines: tuple[str, ...]
    """Those of one rank stand together."""
    numbers: tuple[int, ...]
    """Number of each line in the log, from 1."""
    squeezed: str
    """The lines without spaces and line ends, and in lower case."""
    starts: tuple[int, ...]
    """Position in `squeezed` of each line."""
    omitted_chars: int = 0
    """Characters in the middle of the log that are not looked at."""

    def find_words(self, marker: str) -> Iterator[int]:
        """Yield the index of each line where `marker` begins, wrapped or not."""
        squeezed_marker = squeeze_spaces(marker)
        position = self.squeezed.find(squeezed_marker)
        while position >= 0:
            yield bisect_right(self.starts, position) - 1
            position = self.squeezed.find(squeezed_marker, position + len(squeezed_marker))

    def join_following(self, index: int, end: int, max_chars: int) -> tuple[str, str]:
        """Return the message that begins in a line: with single spaces, and without line ends.

        The first is right for lines that were wrapped between words, the second for those of a
        terminal that wraps anywhere. It ends before line `end` and before the next traceback.
        """
        taken: list[str] = []
        room = max_chars
        for line in islice(self.lines, index, max(end, index + 1)):
            if taken and _TRACEBACK in line:
                break
            taken.append(line[:room])
            room -= len(line) + 1
            if room <= 0:
                break
        return " ".join(" ".join(taken).split()), " ".join("".join(taken).split())

    def join_preceding(self, index: int) -> str:
        """Return the lines before `index`, back to the beginning of their traceback."""
        taken: list[str] = []
        room = _MAX_CONTEXT_CHARS
        while index > 0 and room > 0:
            index -= 1
            line = self.lines[index]
            taken.append(line[-room:])
            room -= len(line) + 1
            if _TRACEBACK in line:
                break
        return "\n".join(reversed(taken))


def squeeze_spaces(text: str) -> str:
    """Return `text` without spaces and line ends, in lower case."""
    return "".join(text.split()).lower()


def clean_log(text: str) -> LogText:
    """Return the lines of a log without colours, carriage returns, timestamps and ranks."""
    omitted_chars = max(0, len(text) - MAX_CHARS)
    if omitted_chars:
        head = MAX_CHARS // 4
        text = text[:head] + "\n" + text[head + omitted_chars :]
    raw_lines = _ESCAPE.sub("", text.replace("\r\n", "\n")).replace("\r", "\n").split("\n")
    numbered = [
        (_find_rank(line), number, piece)
        for number, line in enumerate(raw_lines, 1)
        for piece in _split_line(_strip_prefixes(line))
    ]
    numbered.sort(key=lambda entry: entry[0])  # stable: lines of one rank stay in order
    lines = tuple(line for _, _, line in numbered)
    squeezed_lines = [squeeze_spaces(line) for line in lines]
    starts = tuple(accumulate(map(len, squeezed_lines), initial=0))[: len(lines)]
    numbers = tuple(number for _, number, _ in numbered)
    return LogText(lines, numbers, "".join(squeezed_lines), starts, omitted_chars)


def _split_line(line: str) -> Iterator[str]:
    """Yield a line in pieces of bounded length, each but the last to a space if there is one."""
    start = 0
    while len(line) - start > _MAX_LINE_CHARS:
        end = line.rfind(" ", start + _MAX_LINE_CHARS // 2, start + _MAX_LINE_CHARS) + 1
        end = end or start + _MAX_LINE_CHARS
        yield line[start:end]
        start = end
    yield line[start:]


def _find_rank(line: str) -> int:
    """Return the rank that a line's prefix names, -1 without one."""
    match = _RANK.search(line[:120])
    return int(match[1] or match[2]) if match else -1


def _strip_prefixes(line: str) -> str:
    position = 0
    for _ in range(_MAX_PREFIXES):
        match = _PREFIX.match(line, position)
        if match is None:
            break
        position = match.end()
    return line[position:]

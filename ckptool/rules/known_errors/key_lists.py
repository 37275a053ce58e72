"""Text of load_state_dict's error -> KeyDifference: which keys and shapes differ."""

import re
from collections.abc import Collection, Iterator
from typing import Final

from msgspec import Struct

MAX_KEYS: Final = 20_000
"""Keys of one list that are looked at."""
_QUOTED_KEY: Final = re.compile(r"""["']([^"'\n]{1,400})["']""")
_MISSING: Final = re.compile(
    r"Missing key\(s\) in state_dict: ?|missing_keys ?= ?\[", re.IGNORECASE
)
_UNEXPECTED: Final = re.compile(
    r"Unexpected key\(s\) in state_dict: ?|unexpected_keys ?= ?\[", re.IGNORECASE
)
_MISMATCH: Final = re.compile(
    r"size mismatch for ([^:]{1,400}): copying a param with shape (?:torch\.Size\()?"
    r"([\[(][\d, ]{0,80}[\])])\)? from checkpoint, the shape in current model is"
    r" (?:torch\.Size\()?([\[(][\d, ]{0,80}[\])])"
)
_CLASS: Final = re.compile(r"Error\(s\) in loading state_dict for ([\w.\[\]]{1,200}):")


class ShapeMismatch(Struct, frozen=True):
    """A key whose tensor has another shape in the file than in the module."""

    key: str
    file_shape: tuple[int, ...]
    module_shape: tuple[int, ...]


class KeyDifference(Struct, frozen=True):
    """Keys that only the module, only the file, or both with different shapes have."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatches: tuple[ShapeMismatch, ...] = ()
    class_name: str = ""
    """Class of the module, "" if not known."""

    @property
    def count(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.mismatches)

    def without(self, keys: Collection[str]) -> "KeyDifference":
        """Return the difference without what `keys` name."""
        return KeyDifference(
            tuple(key for key in self.missing if key not in keys),
            tuple(key for key in self.unexpected if key not in keys),
            tuple(mismatch for mismatch in self.mismatches if mismatch.key not in keys),
            self.class_name,
        )


def parse_key_difference(text: str) -> KeyDifference:
    """Parse the message of load_state_dict, or the text of `_IncompatibleKeys`."""
    class_match = _CLASS.search(text)
    return KeyDifference(
        tuple(_parse_keys(text, _MISSING)),
        tuple(_parse_keys(text, _UNEXPECTED)),
        tuple(_parse_mismatches(text)),
        class_match[1] if class_match else "",
    )


def _parse_keys(text: str, start: re.Pattern[str]) -> Iterator[str]:
    """Yield the quoted keys that follow `start`, separated by commas."""
    match = start.search(text)
    position = match.end() if match else len(text)
    for _ in range(MAX_KEYS):
        key_match = _QUOTED_KEY.match(text, position)
        if key_match is None:
            return
        yield key_match[1].replace(" ", "")
        position = key_match.end()
        while position < len(text) and text[position] in ", ":
            position += 1


def _parse_mismatches(text: str) -> Iterator[ShapeMismatch]:
    for match in _MISMATCH.finditer(text):
        key = match[1].replace(" ", "")
        yield ShapeMismatch(key, _parse_shape(match[2]), _parse_shape(match[3]))


def _parse_shape(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d{1,18}", text.replace(" ", ", ")))

"""Strict, incremental JSON reader: refuses JSON that parsers read differently."""

import json
import re
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.limits import Limits
from ckptool.locations import Location
from ckptool.phrases import truncate

ReadRange = Callable[[int, int], bytes]
"""(position, number of bytes) -> bytes."""

_PIECE_BYTES: Final = 1 << 18
_MAX_SHOWN_LENGTH: Final = 80
_BLANKS_PATTERN: Final = re.compile(r"[ \t\r\n]*")
_PLAIN_KEY_PATTERN: Final = re.compile(r'[ \t\r\n]*"([^"\\\x00-\x1f]*)"[ \t\r\n]*:')
_NEXT_KEY_PATTERN: Final = re.compile(rf"[ \t\r\n]*,{_PLAIN_KEY_PATTERN.pattern}")
_NUMBER_PATTERN: Final = re.compile(r"[-+.eE0-9]*")
_BRACE_TO_BRACKET: Final = bytes.maketrans(b"{}", b"[]")
_NON_STRUCTURAL_BYTES: Final = bytes(set(range(256)) - set(b'"[]{}'))


class JsonReader:
    """Reads JSON member by member; little more than the current member is in memory.

    Duplicate keys, NaN, lone surrogates, invalid UTF-8, and nesting, numbers and values above
    their limits raise CorruptCheckpointError.
    """

    def __init__(
        self, path: Location, read_range: ReadRange, nbytes: int, limits: Limits, subject: str
    ) -> None:
        """Read `nbytes` by `read_range`; errors name `path` and `subject` ("the header")."""
        self._path = path
        self._read_range = read_range
        self._bytes_read = 0
        self._nbytes = nbytes
        self._limits = limits
        self._subject = subject
        self._json_decoder = _make_decoder(limits)
        self._utf8_decoder = getincrementaldecoder("utf-8")()
        self._text = ""
        self._position = 0
        self._discarded_characters = 0
        """Number of characters before `_text`."""

    def iter_keys(self) -> Iterator[str]:
        """Yield the keys of the next object; the caller reads each value by `read_value`."""
        self._expect_character("{")
        known_keys: set[str] = set()
        while True:
            match = _NEXT_KEY_PATTERN.match(self._text, self._position) if known_keys else None
            if match:
                self._position = match.end()
                key = match[1]
            elif self.peek_character() == "}":
                break
            else:
                if known_keys:
                    self._expect_character(",")
                key = self._read_key()
            if key in known_keys:
                self._raise_error(_format_duplicate_key(key))
            known_keys.add(key)
            if len(known_keys) > self._limits.tensors:
                self._raise_error(f"it has more than {self._limits.tensors} keys")
            yield key
        self._expect_character("}")

    def read_value(self, limit: int) -> Any:
        """Return the next value, of up to `limit` characters."""
        self.peek_character()
        while True:
            try:
                value, end = self._json_decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if not self._read_more(limit):
                    self._raise_error(
                        f"{error.msg} at character {self._discarded_characters + error.pos}"
                    )
            except RecursionError:
                self._raise_error(f"it nests deeper than {self._limits.json_depth}")
            except _RejectedJsonError as error:
                if not self._read_more(limit):  # "-0" may go on as "-0.5"
                    self._raise_error(str(error))
            else:
                if self._may_continue(end) and self._read_more(limit):
                    continue
                self._check_value(value, end)
                self._position = end
                return value

    def match_value(self, pattern: re.Pattern[str]) -> "re.Match[str] | None":
        """Return the match of the next value, which it consumes; None where it has another form.

        The pattern describes a whole object of bounded length, without escapes and with different
        keys, so that nothing else has to be checked of it.
        """
        match = pattern.match(self._text, self._position)
        if match is not None:
            self._position = match.end()
        return match

    def peek_character(self) -> str:
        """Return the next character after blanks, without consuming it; "" at the end."""
        while True:
            if self._position < len(self._text) and self._text[self._position] not in " \t\r\n":
                return self._text[self._position]
            blanks = _BLANKS_PATTERN.match(self._text, self._position)
            self._position = blanks.end() if blanks else self._position
            if self._position == len(self._text) and not self._read_more(0):
                return ""

    def read_remaining(self, allowed_characters: str) -> str:
        """Return the start of the remaining text without leading `allowed` characters, or ""."""
        while True:
            remaining = self._text[self._position :].lstrip(allowed_characters)
            self._position = len(self._text)
            if remaining or not self._read_more(0):
                return remaining[: _MAX_SHOWN_LENGTH + 1]

    def _read_key(self) -> str:
        """Consume a key and its colon, by one regex match if nothing in the key is escaped."""
        if match := _PLAIN_KEY_PATTERN.match(self._text, self._position):
            self._position = match.end()
            return match[1]
        if self.peek_character() != '"':
            self._raise_error("a key in quotes is missing")
        key: str = self.read_value(self._limits.entry_bytes)
        self._expect_character(":")
        return key

    def _expect_character(self, character: str) -> None:
        actual = self.peek_character()
        if actual != character:
            problem = f"found {quote_text(actual)}" if actual else "found the end"
            self._raise_error(f"{problem} instead of {character}")
        self._position += 1

    def _may_continue(self, end: int) -> bool:
        """Whether the value up to `end` may be a number cut by the end of `_text`: the 1 of 10."""
        if self._text[end - 1] in '"]}':
            return False
        match = _NUMBER_PATTERN.match(self._text, end)
        return match is not None and match.end() == len(self._text)

    def _read_more(self, limit: int) -> bool:
        """Read more text, twice as much each time; return False at the end."""
        remaining = self._text[self._position :]
        if len(remaining) > limit > 0:
            self._raise_error(f"a value has more than {limit} characters")
        size = min(self._nbytes - self._bytes_read, max(_PIECE_BYTES, len(remaining)))
        if not size:
            return False
        data = self._read_range(self._bytes_read, size)
        try:
            text = self._utf8_decoder.decode(data, final=self._bytes_read + size == self._nbytes)
        except UnicodeDecodeError as error:
            start = self._bytes_read + size - len(error.object) + error.start
            reason = f"{self._subject} is not UTF-8 at byte {start}"
            raise CorruptCheckpointError(self._path, reason) from error
        self._bytes_read += size
        self._discarded_characters += self._position
        self._text, self._position = remaining + text, 0
        return True

    def _check_value(self, value: object, end: int) -> None:
        """Refuse lone surrogates and nesting above the limit, which `json` accepts."""
        if self._text.find("\\u", self._position, end) >= 0:
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                self._raise_error("a string contains half of a surrogate pair")
        depth = self._limits.json_depth
        if end - self._position > 2 * depth and _nests_deeper(
            self._text[self._position : end].encode(), depth
        ):
            self._raise_error(f"it nests deeper than {depth}")

    def _raise_error(self, reason: str) -> NoReturn:
        raise CorruptCheckpointError(self._path, f"{self._subject} is not valid JSON: {reason}")


def decode_object(
    path: Location, data: bytes, limits: Limits, subject: str
) -> tuple[dict[str, Any], str]:
    """Return the JSON object at the start of `data`, and the start of the text after it.

    Raises:
        CorruptCheckpointError: it is not a JSON object, or one that parsers read differently.
    """
    reader = JsonReader(
        path,
        lambda position, nbytes: data[position : position + nbytes],
        len(data),
        limits,
        subject,
    )
    value = reader.read_value(len(data))
    if not isinstance(value, dict):
        raise CorruptCheckpointError(
            path, f"{subject} is {describe_type(value)} instead of a JSON object"
        )
    return value, reader.read_remaining("")


def quote_text(text: str) -> str:
    """Return the repr of `text`, cut to 80 characters: no control characters reach a terminal."""
    return repr(truncate(text, _MAX_SHOWN_LENGTH))


def format_value(value: object) -> str:
    """Return a JSON value for a message: a string or a number itself, else its JSON type."""
    if isinstance(value, str):
        return quote_text(value)
    return repr(value) if type(value) in {int, float} else describe_type(value)


def describe_type(value: object) -> str:
    """Return the JSON type of a value with its article: "an object", "null"."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")


class _RejectedJsonError(ValueError):
    """A construct that JSON parsers read differently."""


def _make_decoder(limits: Limits) -> json.JSONDecoder:
    def parse_integer(digits: str) -> int:
        if len(digits.lstrip("-")) > limits.json_digits:
            raise _RejectedJsonError(f"a number has {len(digits)} digits")
        if digits == "-0":
            raise _RejectedJsonError("-0 is not an integer for every JSON parser")
        return int(digits)

    return json.JSONDecoder(
        object_pairs_hook=_build_unique_dict,
        parse_int=parse_integer,
        parse_constant=_reject_constant,
    )


def _build_unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _RejectedJsonError(
            _format_duplicate_key(next(key for key, count in counts.items() if count > 1))
        )
    return mapping


def _format_duplicate_key(key: str) -> str:
    return f"the key {quote_text(key)} appears twice in one object"


def _reject_constant(name: str) -> NoReturn:
    raise _RejectedJsonError(f"{name} is not a JSON number")


def _nests_deeper(data: bytes, limit: int) -> bool:
    """Whether brackets nest deeper than `limit`: remove the innermost pairs `limit` times."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    if b"\\" in data:
        data = data.replace(rb"\\", b"").replace(rb"\"", b"")
    brackets = data.translate(_BRACE_TO_BRACKET, _NON_STRUCTURAL_BYTES).replace(b'""', b"")
    if b'"' in brackets:
        brackets = b"".join(brackets.split(b'"')[::2])
    for _ in range(limit):
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)

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

Read = Callable[[int, int], bytes]
"""(position, number of bytes) -> bytes."""

_PIECE: Final = 1 << 18
_SHOWN: Final = 80
_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_PLAIN_KEY: Final = re.compile(r'[ \t\r\n]*"([^"\\\x00-\x1f]*)"[ \t\r\n]*:')
_NUMBER: Final = re.compile(r"[-+.eE0-9]*")
_ONE_BRACKET: Final = bytes.maketrans(b"{}", b"[]")
_NO_STRUCTURE: Final = bytes(set(range(256)) - set(b'"[]{}'))


class JsonReader:
    """Reads JSON member by member; little more than the current member is in memory.

    Duplicate keys, NaN, lone surrogates, invalid UTF-8, and nesting, numbers and values above
    their limits raise CorruptCheckpointError.
    """

    def __init__(self, path: Location, read: Read, nbytes: int, limits: Limits, what: str) -> None:
        """Read `nbytes` by `read_range`; errors name `path` and `subject` ("the header")."""
        self._path = path
        self._read = read
        self._taken = 0
        self._nbytes = nbytes
        self._limits = limits
        self._what = what
        self._json = _decoder(limits)
        self._utf8 = getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._passed = 0
        """Number of characters before `_text`."""

    def members(self) -> Iterator[str]:
        """Yield the keys of the next object; the caller reads each value by `read_value`."""
        self._take("{")
        seen: set[str] = set()
        while self.peek() != "}":
            if seen:
                self._take(",")
            key = self._key()
            if key in seen:
                self._fail(_twice(key))
            seen.add(key)
            if len(seen) > self._limits.tensors:
                self._fail(f"it has more than {self._limits.tensors} keys")
            yield key
        self._take("}")

    def value(self, limit: int) -> Any:
        """Return the next value, of up to `limit` characters."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._more(limit):
                    self._fail(f"{error.msg} at character {self._passed + error.pos}")
            except RecursionError:
                self._fail(f"it nests deeper than {self._limits.json_depth}")
            except _RejectedError as error:
                self._fail(str(error))
            else:
                if self._goes_on(end) and self._more(limit):
                    continue
                self._check(value, end)
                self._at = end
                return value

    def peek(self) -> str:
        """Return the next character after blanks, without consuming it; "" at the end."""
        while True:
            if self._at < len(self._text) and self._text[self._at] not in " \t\r\n":
                return self._text[self._at]
            blanks = _BLANKS.match(self._text, self._at)
            self._at = blanks.end() if blanks else self._at
            if self._at == len(self._text) and not self._more(0):
                return ""

    def rest(self, allowed: str) -> str:
        """Return the start of the remaining text without leading `allowed` characters, or ""."""
        while True:
            rest = self._text[self._at :].lstrip(allowed)
            self._at = len(self._text)
            if rest or not self._more(0):
                return rest[: _SHOWN + 1]

    def _key(self) -> str:
        """Consume a key and its colon, by one regex match if nothing in the key is escaped."""
        if found := _PLAIN_KEY.match(self._text, self._at):
            self._at = found.end()
            return found[1]
        if self.peek() != '"':
            self._fail("a key in quotes is missing")
        key: str = self.value(self._limits.entry_bytes)
        self._take(":")
        return key

    def _take(self, character: str) -> None:
        found = self.peek()
        if found != character:
            instead = f"{quoted(found)} stands" if found else "the end is"
            self._fail(f"{instead} where a {character} belongs")
        self._at += 1

    def _goes_on(self, end: int) -> bool:
        """Whether the value up to `end` may be a number cut by the end of `_text`: the 1 of 10."""
        if self._text[end - 1] in '"]}':
            return False
        found = _NUMBER.match(self._text, end)
        return found is not None and found.end() == len(self._text)

    def _more(self, limit: int) -> bool:
        """Read more text, twice as much each time; return False at the end."""
        held = self._text[self._at :]
        if len(held) > limit > 0:
            self._fail(f"a value has more than {limit} characters")
        size = min(self._nbytes - self._taken, max(_PIECE, len(held)))
        if not size:
            return False
        data = self._read(self._taken, size)
        try:
            new = self._utf8.decode(data, final=self._taken + size == self._nbytes)
        except UnicodeDecodeError as error:
            start = self._taken + size - len(error.object) + error.start
            reason = f"{self._what} is not UTF-8 at byte {start}"
            raise CorruptCheckpointError(self._path, reason) from error
        self._taken += size
        self._passed += self._at
        self._text, self._at = held + new, 0
        return True

    def _check(self, value: object, end: int) -> None:
        """Refuse lone surrogates and nesting above the limit, which `json` accepts."""
        if self._text.find("\\u", self._at, end) >= 0:
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                self._fail("a string holds half of a surrogate pair")
        depth = self._limits.json_depth
        if end - self._at > 2 * depth and _is_deep(self._text[self._at : end].encode(), depth):
            self._fail(f"it nests deeper than {depth}")

    def _fail(self, reason: str) -> NoReturn:
        raise CorruptCheckpointError(self._path, f"{self._what} is not valid JSON: {reason}")


def decode(path: Location, data: bytes, limits: Limits, what: str) -> tuple[dict[str, Any], str]:
    """Return the JSON object at the start of `data`, and the start of the text after it.

    Raises:
        CorruptCheckpointError: it is no JSON object, or one that parsers read differently.
    """
    reader = JsonReader(path, lambda at, nbytes: data[at : at + nbytes], len(data), limits, what)
    value = reader.value(len(data))
    if not isinstance(value, dict):
        raise CorruptCheckpointError(path, f"{what} is {named(value)} where a JSON object belongs")
    return value, reader.rest("")


def quoted(text: str) -> str:
    """Return the repr of `text`, cut to 80 characters: no control characters reach a terminal."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def shown(value: object) -> str:
    """Return a JSON value for a message: a string or a number itself, else its JSON type."""
    if isinstance(value, str):
        return quoted(value)
    return repr(value) if type(value) in {int, float} else named(value)


def named(value: object) -> str:
    """Return the JSON type of a value with its article: "an object", "null"."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")


class _RejectedError(ValueError):
    """A construct that JSON parsers read differently."""


def _decoder(limits: Limits) -> json.JSONDecoder:
    def integer(digits: str) -> int:
        if len(digits.lstrip("-")) > limits.json_digits:
            raise _RejectedError(f"a number has {len(digits)} digits")
        return int(digits)

    return json.JSONDecoder(
        object_pairs_hook=_unique, parse_int=integer, parse_constant=_no_constant
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _RejectedError(_twice(next(key for key, count in counts.items() if count > 1)))
    return found


def _twice(key: str) -> str:
    return f"the key {quoted(key)} stands twice in one object"


def _no_constant(name: str) -> NoReturn:
    raise _RejectedError(f"{name} is no JSON number")


def _is_deep(data: bytes, limit: int) -> bool:
    """Whether brackets nest deeper than `limit`: remove the innermost pairs `limit` times."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    if b"\\" in data:
        data = data.replace(rb"\\", b"").replace(rb"\"", b"")
    outline = data.translate(_ONE_BRACKET, _NO_STRUCTURE).replace(b'""', b"")
    if b'"' in outline:
        outline = b"".join(outline.split(b'"')[::2])
    for _ in range(limit):
        outline = outline.replace(b"[]", b"")
    return bool(outline)

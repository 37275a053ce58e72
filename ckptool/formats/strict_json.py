"""Bytes of a JSON object -> dict: strictly, so that no two readers see different things in it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.limits import Limits

_SHOWN = 80
_ONE_BRACKET = bytes.maketrans(b"{}", b"[]")
_NO_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))


class _RejectedError(ValueError):
    """Something that JSON readers disagree about."""


def decode(path: Path, data: bytes, limits: Limits, what: str) -> tuple[dict[str, Any], str]:
    """Return the JSON object at the start of `data`, and the text that follows it.

    Args:
        path: the file that the bytes are from, for the message.
        data: UTF-8 whose first byte is the object's brace.
        limits: bounds on the depth and on the digits of a number.
        what: what the object is, for the message: "the header".

    Raises:
        CorruptCheckpointError: it is no JSON object, or one that JSON readers disagree about:
            a key twice, NaN, half of a surrogate pair, or nesting past the limit.
    """
    try:
        _check_depth(data, limits.json_depth)
        text = data.decode()
        value, end = _decoder(limits).raw_decode(text)
        _check_surrogates(data, value)
    except UnicodeDecodeError as error:
        reason = f"{what} is not UTF-8 at byte {error.start}"
        raise CorruptCheckpointError(path, reason) from error
    except ValueError as error:
        raise CorruptCheckpointError(path, f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(path, f"{what} is {named(value)} where a JSON object belongs")
    return value, text[end:]


def quoted(text: str) -> str:
    """Return `text` in quotes, short and without anything that a terminal would act on."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def shown(value: object) -> str:
    """Return a JSON value for a message: itself if it is small, else what kind it is."""
    if isinstance(value, str):
        return quoted(value)
    return repr(value) if type(value) in {int, float} else named(value)


def named(value: object) -> str:
    """Return what JSON calls a value of this kind."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")


def _check_depth(data: bytes, limit: int) -> None:
    """Refuse deep nesting before the parser, which recurses, can meet it.

    All of it is done by bytes methods: taking the innermost brackets away `limit` times costs
    nothing beside the parsing, and a loop over the bytes would cost several times as much.
    """
    if b"\\" in data:
        data = data.replace(rb"\\", b"").replace(rb"\"", b"")
    outline = data.translate(_ONE_BRACKET, _NO_STRUCTURE).replace(b'""', b"")
    if b'"' in outline:
        outline = b"".join(outline.split(b'"')[::2])
    for _ in range(limit):
        if not outline:
            return
        outline = outline.replace(b"[]", b"")
    if outline:
        raise _RejectedError(f"brackets do not match, or nest deeper than {limit}")


def _decoder(limits: Limits) -> json.JSONDecoder:
    def integer(digits: str) -> int:
        if len(digits) > limits.json_digits:
            raise _RejectedError(f"a number has {len(digits)} digits")
        return int(digits)

    return json.JSONDecoder(
        object_pairs_hook=_unique, parse_int=integer, parse_constant=_no_constant
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _RejectedError(f"the key {quoted(twice)} stands twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise _RejectedError(f"{name} is no JSON number")


def _check_surrogates(data: bytes, value: object) -> None:
    """Refuse half of a surrogate pair, which the parser takes and UTF-8 cannot hold."""
    if rb"\ud" in data or rb"\uD" in data:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _RejectedError("a string holds half of a surrogate pair") from error

"""The pulling JSON reader against the standard library's parser, with pieces of few bytes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptool.errors import CorruptCheckpointError
from ckptool.formats import strict_json
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.formats.strict_json import JsonReader, decode_object

PATH = Path("a.json")
LARGEST = 10**17
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = (
    st.none() | st.booleans() | texts | st.integers(-LARGEST, LARGEST) | st.floats(allow_nan=False)
).filter(lambda n: n not in {float("inf"), float("-inf")})
values = st.recursive(scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(texts, v))
objects = st.dictionaries(texts, values, max_size=5)


def reader(text: str | bytes, limits: Limits = DEFAULT_LIMITS) -> JsonReader:
    data = text.encode() if isinstance(text, str) else text
    return JsonReader(PATH, lambda at, n: data[at : at + n], len(data), limits, "it")


def members(text: str | bytes, limits: Limits = DEFAULT_LIMITS) -> dict:
    taken = reader(text, limits)
    found = {key: taken.read_value(limits.entry_bytes) for key in taken.iter_keys()}
    if rest := taken.read_remaining(" "):
        raise CorruptCheckpointError(PATH, f"{rest!r} follows")
    return found


PIECES = [1, 3, 7, 1 << 18]
pieces = st.sampled_from(PIECES)


@contextmanager
def pieces_of(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "_PIECE_BYTES", size)
        yield


@given(objects, st.booleans(), st.sampled_from([None, 1]), pieces)
def test_says_what_the_parser_says(value, ascii_only, indent, piece):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    with pieces_of(piece):
        assert members(text) == value
        assert decode_object(PATH, text.encode(), DEFAULT_LIMITS, "it") == (value, "")


def test_a_negative_fraction_is_cut_after_its_zero():
    with pieces_of(1):
        assert members('{"": -0.0, "b": [-0.5]}') == {"": -0.0, "b": [-0.5]}


@given(objects, pieces, st.data())
def test_refuses_what_the_parser_refuses(value, piece, data):
    """A text with one character changed is refused by both, or is the same to both."""
    text = json.dumps(value, ensure_ascii=False)
    at = data.draw(st.integers(0, len(text) - 1))
    text = text[:at] + data.draw(st.sampled_from('{}[]",:\\0-. eu\n')) + text[at + 1 :]
    try:
        expected = json.loads(text.rstrip(" "), object_pairs_hook=_unique)
    except ValueError:
        expected = None
    with pieces_of(piece):
        if isinstance(expected, dict) and text.startswith("{"):
            assert members(text) == expected
        else:
            with pytest.raises(CorruptCheckpointError):
                members(text)


def _unique(pairs: list) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


REFUSED = {
    "nothing": (b"", "found the end instead of {"),
    "a list": (b"[1]", r"'\[' instead of {"),
    "no end": (b'{"a": 1', "found the end instead of ,"),
    "no value": (b'{"a": }', "Expecting value at character 6"),
    "no key": (b"{1: 2}", "a key in quotes is missing"),
    "no colon": (b'{"a" 1}', "'1' instead of :"),
    "a comma too many": (b'{"a": 1,}', "a key in quotes is missing"),
    "a comma too few": (b'{"a": 1 "b": 2}', "'\"' instead of ,"),
    "a cut number": (b'{"a": -', "Expecting value at character 6"),
    "a cut string": (b'{"a": "b', "Unterminated string starting at at character 6"),
    "not UTF-8": (b'{"a": "\xe2\x82"}', "is not UTF-8 at byte 7"),
    "cut UTF-8": (b'{"a": "\xe2\x82', "is not UTF-8 at byte 7"),
    "deep": (b'{"a": ' + b"[" * 129 + b"]" * 129 + b"}", "deeper than 128"),
    "deeper than the stack": (b'{"a": ' + b"[" * 50_000, "deeper than 128|more than 1000 char"),
    "a long value": (b'{"a": "' + b"x" * 5000, "more than 1000 characters"),
    "a surrogate, escaped backslash": (rb'{"\\\ud800": 1}', "surrogate"),
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(text, reason, piece):
    with pieces_of(piece), pytest.raises(CorruptCheckpointError, match=reason):
        members(text, Limits(entry_bytes=1000))


def test_depth_is_that_of_brackets_outside_strings():
    deep = {"a": json.loads("[" * 127 + '"[[{\\"[[["' + "]" * 127), '"[\\': ["[" * 500] * 3}
    assert members(json.dumps(deep)) == deep


def test_number_of_keys():
    assert members('{"a": 1, "b": 2}', Limits(tensors=2)) == {"a": 1, "b": 2}
    with pytest.raises(CorruptCheckpointError, match="more than 2 keys"):
        members('{"a": 1, "b": 2, "c": 3}', Limits(tensors=2))


def test_what_follows():
    value, rest = decode_object(PATH, b'{"a": 1} x', DEFAULT_LIMITS, "it")
    assert (value, rest) == ({"a": 1}, " x")
    taken = reader(b"{} \n \t\0")
    assert list(taken.iter_keys()) == []
    assert taken.read_remaining(" \n\t") == "\0"

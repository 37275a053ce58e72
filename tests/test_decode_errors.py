"""The sentences of the installed msgspec, which are all that it says of an error."""

from datetime import date
from typing import Annotated, Any, Literal

import msgspec
import pytest

from ckptool.decode_errors import (
    UnknownField,
    explain_decode_error,
    find_unknown_field,
    locate_problem,
    split_decode_error,
)


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    level: Literal["note", "error"] = "note"
    expires: date | None = None
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()
    counts: dict[str, int] = {}


class Document(msgspec.Struct, forbid_unknown_fields=True):
    models: tuple[Entry, ...] = ()


def decode_message(data: Any) -> str:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(data, Document)
    return str(caught.value)


def entry(**fields: Any) -> dict[str, Any]:
    return {"models": [{"path": "p"} | fields]}


FAULTS = {
    "another type": (
        entry(path=3),
        ("Expected `str`, got `int`", ".models[0].path"),
        "[[models]] number 1: path: expected text in quotes, and it is an integer",
    ),
    "a field that is missing": (
        {"models": [{}]},
        ("Object missing required field `path`", ".models[0]"),
        "[[models]] number 1: `path` is missing",
    ),
    "a value that is none of the choices": (
        entry(level="loud"),
        ("Invalid enum value 'loud'", ".models[0].level"),
        "[[models]] number 1: level: 'loud' is not one of note, error",
    ),
    "text that is no date": (
        entry(expires="tomorrow"),
        ("Invalid RFC3339 encoded date", ".models[0].expires"),
        "[[models]] number 1: expires: expected a date, for example 2027-03-31, without quotes",
    ),
    "a number where a date belongs": (
        entry(expires=3),
        ("Expected `date | null`, got `int`", ".models[0].expires"),
        "[[models]] number 1: expires: expected a date, for example 2027-03-31, without quotes",
    ),
    "a number out of its bounds": (
        entry(shape=[1, -1]),
        ("Expected `int` >= 0", ".models[0].shape[1]"),
        "[[models]] number 1: shape: number 2: Expected `int` >= 0",
    ),
    "a value of a table": (
        entry(counts={"a": "b"}),
        ("Expected `int`, got `str`", ".models[0].counts[...]"),
        "[[models]] number 1: counts: expected an integer, and it is text in quotes",
    ),
    "a key of a table": (
        entry(counts={1: 1}),
        ("Expected `str`, got `int`", ".models[0].counts"),
        "[[models]] number 1: counts: expected text in quotes, and it is an integer",
    ),
    "the whole document": (
        [],
        ("Expected `object`, got `array`", ""),
        "expected a table, and it is a list",
    ),
}


@pytest.mark.parametrize(("data", "parts", "explanation"), FAULTS.values(), ids=FAULTS)
def test_what_msgspec_says_is_understood(data, parts, explanation):
    message = decode_message(data)
    assert split_decode_error(message) == parts
    assert explain_decode_error(message, {"level": ("note", "error")}) == explanation
    assert find_unknown_field(message) is None


@pytest.mark.parametrize(
    ("data", "unknown"),
    [
        ({"modles": 1}, UnknownField("modles", "")),
        (entry(pth="q"), UnknownField("pth", ".models[0]")),
        ({"a\nb": 1}, UnknownField("a\nb", "")),
    ],
)
def test_an_unknown_field_is_named_with_its_place(data, unknown):
    message = decode_message(data)
    assert find_unknown_field(message) == unknown


def test_a_message_is_put_together_as_it_was():
    message = decode_message(entry(path=3))
    assert locate_problem(*split_decode_error(message)) == message

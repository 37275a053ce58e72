"""msgspec validation message -> its problem and place, and one line in the terms of TOML.

msgspec has its errors as sentences only: what reads one is here, and a test holds it to the
sentences of the installed version.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

_TOML_TYPES: Final = {
    "array": "a list",
    "object": "a table",
    "str": "text in quotes",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "date": "a date",
}
"""msgspec type name -> its description in TOML terms."""
_MESSAGE_PATTERN: Final = re.compile(r"(.*) - at (?:`key` in )?`\$(.*)`", re.DOTALL)
_UNKNOWN_FIELD_PATTERN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_PATH_STEP: Final = re.compile(r"\.([\w-]+)((?:\[\d+\])?)")


class UnknownField(NamedTuple):
    """A field that a struct does not have."""

    name: str
    path: str
    """JSON path of the object that has it: ".models[0]"; "" for the whole document."""


def split_decode_error(message: str) -> tuple[str, str]:
    """Return (problem, JSON path): ("Expected `str`, got `int`", ".models[0].path")."""
    match = _MESSAGE_PATTERN.fullmatch(message)
    return (match[1], match[2]) if match else (message, "")


def locate_problem(problem: str, path: str) -> str:
    """Return the message of a problem at a JSON path, as msgspec writes it."""
    return f"{problem} - at `${path}`" if path else problem


def find_unknown_field(message: str) -> UnknownField | None:
    """Return the unknown field that the message is about; None if it is about something else."""
    problem, path = split_decode_error(message)
    match = _UNKNOWN_FIELD_PATTERN.fullmatch(problem)
    return UnknownField(match[1], path) if match else None


def explain_decode_error(message: str, choices: Mapping[str, Sequence[str]] = {}) -> str:
    """Explain a decode error: location, problem, and the expected value.

    Args:
        message: of msgspec, "Expected `str`, got `int` - at `$.models[0].path`".
        choices: key -> its allowed values, for keys that have few.
    """
    problem, path = split_decode_error(message)
    key = next((name for name, _ in reversed(_PATH_STEP.findall(path))), "")
    location = format_json_path(path)
    return (
        f"{location}: {_explain_problem(problem, choices.get(key, ()))}"
        if location
        else _explain_problem(problem, ())
    )


def format_json_path(path: str) -> str:
    """Format a JSON path in TOML terms: ".waivers[0].rule" is "[[waivers]] number 1: rule"."""
    steps = _PATH_STEP.findall(path)
    last = len(steps) - 1
    return ": ".join(_format_step(*step, last=n == last) for n, step in enumerate(steps))


def _format_step(name: str, index: str, *, last: bool) -> str:
    if not index:
        return name
    number = int(index.strip("[]")) + 1
    if name == "ops":
        return f"step {number}"
    tables = name in {"models", "paths", "waivers"}
    return f"[[{name}]] number {number}" if tables or not last else f"{name}: number {number}"


def _explain_problem(problem: str, choices: Sequence[str]) -> str:
    if missing := re.match(r"Object missing required field `(.*)`", problem):
        return f"`{missing[1]}` is missing"
    if invalid := re.match(r"Invalid enum value (.*)", problem):
        return f"{invalid[1]} is not one of {', '.join(choices)}" if choices else problem
    if re.match(r"Invalid RFC3339 encoded date|Expected `date", problem):
        return "expected a date, for example 2027-03-31, without quotes"
    if type_mismatch := re.match(r"Expected `(.*?)`, got `(.*?)`", problem):
        expected_types = [
            _TOML_TYPES.get(type_name, type_name)
            for type_name in type_mismatch[1].split(" | ")
            if type_name != "null"
        ]
        return (
            f"expected {' or '.join(expected_types)}, and it is"
            f" {_TOML_TYPES.get(type_mismatch[2], type_mismatch[2])}"
        )
    return problem

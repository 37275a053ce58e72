"""msgspec validation message -> one line in the terms of the TOML file."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

_FORMS: Final = {
    "array": "a list",
    "object": "a table",
    "str": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "date": "a date",
}
"""msgspec type name -> its description in TOML terms."""
_AT: Final = re.compile(r"^(.*?) - at `(?:key in )?\$(.*?)`$", re.DOTALL)
_STEP: Final = re.compile(r"\.([\w-]+)((?:\[\d+\])?)")


def plainly(said: str, choices: Mapping[str, Sequence[str]] = {}) -> str:
    """Explain a decode error: location, problem, and the expected value.

    Args:
        message: of msgspec, "Expected `str`, got `int` - at `$.models[0].path`".
        choices: key -> its allowed values, for keys that have few.
    """
    found = _AT.match(said)
    what, path = (found[1], found[2]) if found else (said, "")
    key = next((name for name, _ in reversed(_STEP.findall(path))), "")
    where = place(path)
    return f"{where}: {_fault(what, choices.get(key, ()))}" if where else _fault(what, ())


def place(path: str) -> str:
    """Format a JSON path in TOML terms: ".waivers[0].rule" is "[[waivers]] number 1: rule"."""
    steps = _STEP.findall(path)
    last = len(steps) - 1
    return ": ".join(_step(*step, last=n == last) for n, step in enumerate(steps))


def _step(name: str, index: str, *, last: bool) -> str:
    if not index:
        return name
    number = int(index.strip("[]")) + 1
    if name == "ops":
        return f"step {number}"
    tables = name in {"models", "paths", "waivers"}
    return f"[[{name}]] number {number}" if tables or not last else f"{name}: number {number}"


def _fault(what: str, choices: Sequence[str]) -> str:
    if missing := re.match(r"Object missing required field `(.*)`", what):
        return f"`{missing[1]}` is missing"
    if wrong := re.match(r"Invalid enum value (.*)", what):
        return f"{wrong[1]} is none of {', '.join(choices)}" if choices else what
    if re.match(r"Invalid RFC3339 encoded date|Expected `date", what):
        return "expected a date, for example 2027-03-31, without quotes"
    if form := re.match(r"Expected `(.*?)`, got `(.*?)`", what):
        wanted = [_FORMS.get(one, one) for one in form[1].split(" | ") if one != "null"]
        return f"expected {' or '.join(wanted)}, and it is {_FORMS.get(form[2], form[2])}"
    return what

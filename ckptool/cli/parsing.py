"""Command-line strings -> constructor arguments, limits and shard numbers."""

import ast
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from ckptool.errors import UsageError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits

T = TypeVar("T")

DEFAULT_TIMEOUT: Final = 3600
"""Seconds that one step of a module may take: building it, loading, a verification."""
_MAX_TIMEOUT: Final = 10_000_000


def parse_kwargs(pairs: Sequence[str], file: Path | None = None) -> dict[str, object]:
    """Parse constructor arguments: those of a JSON or TOML file, overridden by `name=literal`.

    Raises:
        UsageError: a pair or the file does not parse.
    """
    arguments: dict[str, object] = dict(_read_kwargs_file(file)) if file else {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"-k {pair}: expected name=value, for example -k d_in=3")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise UsageError(
                f"-k {pair}: {text!r} is no Python literal; "
                f"a string needs its own quotes: -k \"{name}='{text}'\""
            ) from error
    return arguments


def parse_limits(pairs: Sequence[str], *, deep: bool) -> Limits:
    """Return the default limits with `name=number` pairs applied ("pickle-bytes=1000000").

    Raises:
        UsageError: the limit does not exist, or its value is not a number.
    """
    limit_names = set(Limits.__struct_fields__) - {"deep"}
    overrides: dict[str, int] = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        key = name.replace("-", "_")
        if key not in limit_names:
            names = ", ".join(sorted(limit_name.replace("_", "-") for limit_name in limit_names))
            raise UsageError(f"--limit {pair}: there is no such limit; known are {names}")
        if not (number.isascii() and number.isdigit() and len(number) < 20):
            raise UsageError(f"--limit {pair}: expected {name}=NUMBER")
        overrides[key] = int(number)
    return replace(DEFAULT_LIMITS, deep=deep, **overrides)


def _read_kwargs_file(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UsageError(f"--kwargs {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--kwargs {path}: is no valid JSON or TOML: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"--kwargs {path}: expected an object of constructor arguments")
    return data


def parse_timeout(seconds: float) -> float:
    """Return the seconds of --timeout.

    Raises:
        UsageError: the number is out of bounds.
    """
    if not 0 < seconds <= _MAX_TIMEOUT:
        raise UsageError(f"--timeout {seconds:g}: expected seconds, more than 0")
    return seconds


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Parse "I/N" into (I, N); None for None.

    Raises:
        UsageError: the text has another form.
    """
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not slash or not (_is_number(index) and _is_number(count)):
        raise UsageError(f"--shard {text}: expected I/N, for example 1/4 for the first of four")
    return int(index), int(count)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def reject_duplicates(option: str, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return the (name, value) pairs of a repeatable option as a dict.

    Raises:
        UsageError: a name occurs twice.
    """
    values: dict[str, T] = {}
    for name, value in pairs:
        if name in values:
            raise UsageError(f"{option} {name}=...: is given twice")
        values[name] = value
    return values

"""Command-line strings -> constructor arguments, limits and shard numbers."""

import ast
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from ckptool.errors import UsageError
from ckptool.formats.limits import DEFAULT, Limits

T = TypeVar("T")


def parse_kwargs(pairs: Sequence[str], file: Path | None = None) -> dict[str, object]:
    """Parse constructor arguments: those of a JSON or TOML file, overridden by `name=literal`.

    Raises:
        UsageError: a pair or the file does not parse.
    """
    arguments: dict[str, object] = dict(_kwargs_file(file)) if file else {}
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
    known = set(Limits.__struct_fields__) - {"deep"}
    changed: dict[str, int] = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        key = name.replace("-", "_")
        if key not in known:
            names = ", ".join(sorted(k.replace("_", "-") for k in known))
            raise UsageError(f"--limit {pair}: there is no such limit; known are {names}")
        if not (number.isascii() and number.isdigit() and len(number) < 20):
            raise UsageError(f"--limit {pair}: expected {name}=NUMBER")
        changed[key] = int(number)
    return replace(DEFAULT, deep=deep, **changed)


def _kwargs_file(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UsageError(f"--kwargs {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--kwargs {path}: is no valid JSON or TOML: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"--kwargs {path}: expected an object of constructor arguments")
    return found


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Parse "I/N" into (I, N); None for None.

    Raises:
        UsageError: the text has another form.
    """
    if text is None:
        return None
    part, slash, parts = text.partition("/")
    if not slash or not (_number(part) and _number(parts)):
        raise UsageError(f"--shard {text}: expected I/N, for example 1/4 for the first of four")
    return int(part), int(parts)


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def once(option: str, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return the (name, value) pairs of a repeatable option as a dict.

    Raises:
        UsageError: a name occurs twice.
    """
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise UsageError(f"{option} {name}=...: is given twice")
        found[name] = value
    return found

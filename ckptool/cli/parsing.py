"""Command-line strings -> constructor arguments, limits and shard numbers."""

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from ckptool.commands.sources.file_arguments import EVERY_NAME, parse_place
from ckptool.config import parse_size
from ckptool.errors import UsageError, describe_os_error
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.formats.python_text import evaluate_literal
from ckptool.locations import read_small_file

T = TypeVar("T")

DEFAULT_TIMEOUT: Final = 3600
"""Seconds that one step of a module may take: building it, loading, a verification."""
_MAX_TIMEOUT: Final = 10_000_000


def parse_kwargs(pairs: Sequence[str], file: Path | None = None) -> dict[str, object]:
    """Parse constructor arguments: those of a file, overridden by `name=literal`.

    `cfg.d=3` sets one field of the argument `cfg`, and `cfg=@cfg` takes the checkpoint's `cfg`. The
    file may be `@cfg` as well: all items of the checkpoint's `cfg` that fit.

    Raises:
        UsageError: a pair or the file does not parse.
    """
    place = parse_place(str(file)) if file else None
    arguments: dict[str, object] = {}
    if place is not None:
        arguments[EVERY_NAME] = place
    elif file is not None:
        arguments = dict(_read_kwargs_file(file))
    for pair in pairs:
        name, equals, text = pair.partition("=")
        path = name.split(".")
        if not equals or not all(part.isidentifier() for part in path):
            raise UsageError(f"-k {pair}: expected name=value, for example -k d_in=3")
        try:
            value = parse_place(text) or evaluate_literal(text)
            _set_field(arguments, path, value, pair)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise UsageError(
                f"-k {pair}: {text!r} is not a Python literal; "
                f"a string needs its own quotes: -k \"{name}='{text}'\""
            ) from error
    return arguments


def parse_limits(pairs: Sequence[str], *, deep: bool) -> Limits:
    """Return the default limits with `name=number` pairs applied ("pickle-bytes=1000000").

    Raises:
        UsageError: the limit does not exist, or its value is not a number.
    """
    limit_names = set(Limits.__struct_fields__) - {"deep", "contents", "search_remote"}
    overrides: dict[str, int] = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        key = name.replace("-", "_")
        if key not in limit_names:
            names = ", ".join(sorted(limit_name.replace("_", "-") for limit_name in limit_names))
            raise UsageError(f"--limit {pair}: unknown limit; the limits are {names}")
        if not (number.isascii() and number.isdigit() and len(number) < 20):
            raise UsageError(f"--limit {pair}: expected {name}=NUMBER")
        overrides[key] = int(number)
    return replace(DEFAULT_LIMITS, deep=deep, **overrides)


def _set_field(arguments: dict[str, object], path: list[str], value: object, pair: str) -> None:
    """Set a nested field; dicts on the way are copied, so that no other owner sees a change."""
    for depth, name in enumerate(path[:-1], 1):
        fields = arguments.get(name, {})
        if not isinstance(fields, dict):
            raise UsageError(f"-k {pair}: `{'.'.join(path[:depth])}` was given as {fields!r}")
        arguments[name] = dict(fields)
        arguments = arguments[name]  # type: ignore[assignment]
    arguments[path[-1]] = value


def _read_kwargs_file(path: Path) -> Mapping[str, Any]:
    try:
        data = _parse_kwargs_text(path, read_small_file(path).decode())
    except OSError as error:
        raise UsageError(f"--kwargs {path}: {describe_os_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--kwargs {path}: not valid JSON, TOML or YAML: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"--kwargs {path}: expected an object of constructor arguments")
    return data


def _parse_kwargs_text(path: Path, text: str) -> object:
    """Parse a file by its suffix; without one that is known, as JSON.

    Raises:
        ValueError: it is not valid.
        UsageError: it is YAML, and PyYAML is not installed.
    """
    if path.suffix == ".toml":
        import tomllib

        return tomllib.loads(text)
    if path.suffix not in {".yaml", ".yml"}:
        return json.loads(text)
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise UsageError(f"--kwargs {path}: YAML needs PyYAML: pip install pyyaml") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error).replace("\n", " ")) from error


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


def parse_rename(text: str) -> tuple[str, str]:
    """Return old and new key of "OLD=NEW".

    Raises:
        UsageError: one of them is missing.
    """
    return _split_pair("--rename", text, "OLD=NEW, for example 'backbone.*=encoder.*'")


def parse_injection(text: str) -> tuple[str, str]:
    """Return key and source of "KEY=SOURCE".

    Raises:
        UsageError: one of them is missing.
    """
    return _split_pair("--inject", text, "KEY=SOURCE, for example mask=constructor")


def _split_pair(option: str, text: str, form: str) -> tuple[str, str]:
    left, _, right = text.partition("=")
    if not left or not right:
        raise UsageError(f"{option} {text}: expected {form}")
    return left, right


def parse_shard_size(text: str | None) -> int | None:
    """Return the bytes of "5GB"; None for None.

    Raises:
        UsageError: it is no size, or 0.
    """
    if text is None:
        return None
    try:
        nbytes = parse_size(text)
    except ValueError:
        nbytes = 0
    if not nbytes:
        raise UsageError(f"--max-shard-size {text}: expected a size like 500MB or 5GiB")
    return nbytes

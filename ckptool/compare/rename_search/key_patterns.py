"""Patterns of keys: `layers.*.norm.1.*`, `net.{2,4}.*`; old and new pattern -> renamed keys."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from msgspec import Struct

_WILDCARD: Final = re.compile(r"\*|\{[0-9]+(?:\.\.[0-9]+)?(?:,[0-9]+(?:\.\.[0-9]+)?)*\}")
_NUMBER: Final = re.compile(r"[0-9]+")
_MAX_NUMBERS: Final = 100_000
"""Maximum count of numbers that one `{...}` stands for."""


class PatternError(ValueError):
    """A pattern, or a pair of patterns, that does not say how to rename."""


class PatternRename(Struct, frozen=True):
    """A rename from one pattern of keys to another, compiled."""

    regex: re.Pattern[str]
    """Of the old keys, with one group for each wildcard."""
    literals: tuple[str, ...]
    """Text of the new pattern before, between and after its wildcards."""
    number_tables: tuple[Mapping[str, str] | None, ...]
    """For each wildcard: old number -> new number of `{...}`; None for `*`, whose text is kept."""


@lru_cache(maxsize=256)
def _compile_rename(old: str, new: str) -> PatternRename:
    """Compile a rename from one pattern of keys to another.

    `*` stands for text without a dot; at the beginning or the end of a pattern for any text.
    `{0..2,5}` stands for the numbers 0, 1, 2 and 5, which those of the new pattern replace one by
    one.

    Raises:
        PatternError: a wildcard of one pattern has no counterpart in the other.
    """
    old_wildcards, new_wildcards = _WILDCARD.findall(old), _WILDCARD.findall(new)
    if len(old_wildcards) != len(new_wildcards):
        raise PatternError(
            f"`{old}` has {len(old_wildcards)} wildcards and `{new}` {len(new_wildcards)}: each "
            "`*` of the new pattern takes the text matched by the same `*` of the old one"
        )
    tables = [
        _build_number_table(old_text, new_text)
        for old_text, new_text in zip(old_wildcards, new_wildcards, strict=True)
    ]
    parts, start = [], 0
    for wildcard, table in zip(_WILDCARD.finditer(old), tables, strict=True):
        parts.append(re.escape(old[start : wildcard.start()]))
        start = wildcard.end()
        at_edge = wildcard.start() == 0 or start == len(old)
        any_text = "(.*)" if at_edge else "([^.]*)"
        parts.append(any_text if table is None else "([0-9]+)")
    regex = re.compile("".join([*parts, re.escape(old[start:])]), re.DOTALL)
    return PatternRename(regex, tuple(_WILDCARD.split(new)), tuple(tables))


def rename_by_pattern(key: str, old: str, new: str) -> str:
    """Return the new name of `key`, "" if it does not match the pattern `old`.

    Raises:
        PatternError: a wildcard of one pattern has no counterpart in the other.
    """
    rename = _compile_rename(old, new)
    match = rename.regex.fullmatch(key)
    if match is None:
        return ""
    parts = [rename.literals[0]]
    for text, table, literal in zip(
        match.groups(), rename.number_tables, rename.literals[1:], strict=True
    ):
        new_text = text if table is None else table.get(text)
        if new_text is None:
            return ""
        parts += [new_text, literal]
    return "".join(parts)


def is_pattern(text: str) -> bool:
    """Whether `text` has a wildcard."""
    return _WILDCARD.search(text) is not None


def is_exact_pattern(keys: Iterable[str], old: str, new: str, pairs: Mapping[str, str]) -> bool:
    """Whether renaming `keys` by the patterns gives `pairs` and nothing else, there and back."""
    key_set = {*keys}
    try:
        _compile_rename(old, new)
    except PatternError:
        return False
    if _rename_all(key_set, old, new) != pairs:
        return False
    renamed_keys = key_set.difference(pairs).union(pairs.values())
    return _rename_all(renamed_keys, new, old) == {b: a for a, b in pairs.items()}


def _rename_all(keys: Iterable[str], old: str, new: str) -> dict[str, str]:
    prefix = _WILDCARD.split(old)[0]
    renamed = {key: rename_by_pattern(key, old, new) for key in keys if key.startswith(prefix)}
    return {key: new_key for key, new_key in renamed.items() if new_key}


def mask_numbers(text: str) -> str:
    """Replace every number in `text` by `*`."""
    return _NUMBER.sub("*", text)


def split_at_numbers(text: str) -> tuple[tuple[str, str, str], ...]:
    """Return (text before, number, text after) for each number in `text`."""
    return tuple(
        (text[: number.start()], number[0], text[number.end() :])
        for number in _NUMBER.finditer(text)
    )


def list_numbers(text: str) -> tuple[str, ...]:
    """Return the numbers in `text` as they are written, in order."""
    return tuple(_NUMBER.findall(text))


def _fill_numbers(template: str, numbers: Iterable[str]) -> str:
    """Replace each `*` of `template` by the next of `numbers`."""
    remaining = iter(numbers)
    return re.sub(r"\*", lambda _: next(remaining, "*"), template)


def format_numbers(numbers: Sequence[str]) -> str:
    """Return numbers as a pattern: "3" for one, "{0..2,5}" for several, in their order."""
    runs: list[list[str]] = []
    for number in numbers:
        if runs and str(int(runs[-1][-1]) + 1) == number and runs[-1][-1] == str(int(runs[-1][-1])):
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(run) for run in runs]
    return numbers[0] if len(numbers) == 1 else "{" + ",".join(texts) + "}"


def generalize_numbers(texts: Iterable[str]) -> str:
    """Return the texts, which differ in numbers only, as one pattern: `*` where they differ.

    If they differ in more than numbers, that is "*".
    """
    distinct_texts = {*texts}
    templates = {mask_numbers(text) for text in distinct_texts}
    if len(templates) != 1:
        return "*"
    columns = zip(*(list_numbers(text) for text in distinct_texts), strict=True)
    fixed = [numbers[0] if len({*numbers}) == 1 else "*" for numbers in columns]
    return _fill_numbers(templates.pop(), fixed)


def _expand_numbers(braces: str) -> tuple[str, ...]:
    numbers: list[str] = []
    for item in braces[1:-1].split(","):
        first, dots, last = item.partition("..")
        if not dots:
            numbers.append(item)
            continue
        if len(first) > 9 or len(last) > 9 or int(last) - int(first) >= _MAX_NUMBERS:
            raise PatternError(f"`{{{item}}}` covers more than {_MAX_NUMBERS:,} numbers")
        numbers += map(str, range(int(first), int(last) + 1))
    return tuple(numbers)


def _build_number_table(old: str, new: str) -> dict[str, str] | None:
    """Return old number -> new number for two lists in braces, None for two stars."""
    if old == new == "*":
        return None
    old_numbers = _expand_numbers(old) if old != "*" else ()
    new_numbers = _expand_numbers(new) if new != "*" else ()
    if len(old_numbers) != len(new_numbers):
        raise PatternError(
            f"`{old}` and `{new}`: the numbers in braces are replaced one by one, so both lists "
            "must have the same length"
        )
    return dict(zip(old_numbers, new_numbers, strict=True))

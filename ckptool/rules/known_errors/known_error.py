"""KnownError: one kind of error that torch and other libraries report, as data."""

import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from ckptool.phrases import MAX_LINE_CHARS, cut_middle, quote_shell
from ckptool.rules.registry import fill_template

UNNAMED_CHECKPOINT: Final = "CHECKPOINT"
"""Stands for a checkpoint whose path the text does not give."""
UNNAMED_MODULE: Final = "PACKAGE.MODULE:NAME"
"""Stands for the module, whose import path a traceback does not give."""


class Certainty(StrEnum):
    """How sure an explanation is."""

    CERTAIN = "certain"
    """The text itself says it: nothing else leads to this message."""
    PROBABLE = "probable"
    """The usual cause; the command that is named confirms it."""
    POSSIBLE = "possible"
    """One of several causes; the command that is named decides."""


class Advice(Struct, frozen=True):
    """What to do next: a sentence, with a command or with code. Each is a format string."""

    text: str
    command: str = ""
    """A command line; "" if there is none."""
    code: str = ""
    """Python code; "" if there is none."""


class ErrorFacts(Struct, frozen=True):
    """What is known in addition to the text of an error."""

    checkpoint: str = ""
    """Path of the checkpoint, "" if not known."""
    module: str = ""
    """Import target of the module, "" if not known."""
    arguments: tuple[str, ...] = ()
    """Words of the options that its constructor's arguments take: ("-k", "d=3")."""

    @property
    def words(self) -> Mapping[str, str]:
        """The fields `file`, `module_options` and `result` of templates, with placeholders."""
        checkpoint = self.checkpoint or UNNAMED_CHECKPOINT
        stem, _, suffix = checkpoint.replace("\\", "/").rpartition("/")[2].rpartition(".")
        result = f"{stem}-migrated.{suffix}" if stem.strip("-") else f"{checkpoint}-migrated.pth"
        result = result.rpartition("/")[2].lstrip("-")
        return {
            "file": checkpoint,
            "module_options": " ".join(
                map(quote_shell, ("-m", self.module or UNNAMED_MODULE, *self.arguments))
            ),
            "result": result,
            "safetensors": f"{result.rpartition('.')[0]}.safetensors",
        }


class Explanation(Struct, frozen=True):
    """The probable cause of an error, how sure it is, and what to do next."""

    name: str
    """Name of the `KnownError` or `KeyPattern`."""
    cause: str
    certainty: Certainty
    advice: tuple[Advice, ...]


FindFunction = Callable[[re.Match[str], ErrorFacts], Iterator[Explanation]]


class KnownError(Struct, frozen=True):
    """A message, and what it means. `cause` and `advice` are format strings.

    Their fields are the named groups of `pattern`, and `file`, `module_options`, `result` and
    `safetensors` (`ErrorFacts.words`); `{x:sh}` and `{x:path}` quote for a shell, `{x:py}` for
    Python.
    """

    name: str
    marker: str
    """Part of the message that is always in it; spaces and line ends do not count."""
    cause: str
    certainty: Certainty
    advice: tuple[Advice, ...]
    pattern: str = ""
    """Regular expression that has to be found where the marker is, in text with single spaces; ""
    if the marker is enough. Each repetition in it is bounded."""
    contexts: tuple[str, ...] = ()
    """Words of which one has to be in the traceback or the message; () if none is needed."""
    max_chars: int = 10_000
    """Characters of the log, from the line of the marker, in which `pattern` is looked for."""
    other_contexts: tuple[str, ...] = ()
    """Words that are in a traceback with the same message and another cause."""
    part_of: tuple[str, ...] = ()
    """Names of errors whose messages have this one in them: where a log has one of those, this is
    not looked for."""
    find: FindFunction | None = None
    """Finds the explanations in what `pattern` matched, where they are computed; else None."""


def fill_words(template: str, words: Mapping[str, str]) -> str:
    """Return a format string filled: `{x:py}` and `{x:sh}` are quoted."""
    others = {name: text for name, text in words.items() if name != "key"}
    return fill_template(template, words.get("key", ""), others)


def fill_advice(advice: tuple[Advice, ...], words: Mapping[str, str]) -> tuple[Advice, ...]:
    """Return the advice with the fields of its templates filled."""

    def fill(template: str) -> str:
        return fill_words(template, words)

    return tuple(Advice(fill(a.text), fill(a.command), fill(a.code)) for a in advice)


def explain_match(
    known_error: KnownError, match: re.Match[str], facts: ErrorFacts
) -> Iterator[Explanation]:
    """Yield the explanations of a message that the pattern of `known_error` matched."""
    if known_error.find is not None:
        yield from known_error.find(match, facts)
        return
    groups = {name: clean_group(text) for name, text in match.groupdict("").items()}
    words = {**facts.words, **groups}
    cause = fill_words(known_error.cause, words)
    advice = fill_advice(known_error.advice, words)
    yield Explanation(known_error.name, cause, known_error.certainty, advice)


def clean_group(text: str) -> str:
    """Return what a group matched without the spaces of a wrapped line, and of bounded length."""
    return cut_middle(" ".join(text.split()), MAX_LINE_CHARS)

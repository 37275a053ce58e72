"""LogText -> ExplainedErrors: which known errors a log has, and where."""

import re
from functools import lru_cache
from itertools import islice, pairwise
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.rules.known_errors import KNOWN_ERRORS
from ckptool.rules.known_errors.known_error import (
    ErrorFacts,
    Explanation,
    KnownError,
    explain_match,
)
from ckptool.rules.known_errors.log_text import LogText, clean_log, squeeze_spaces

_MAX_CONTEXT_CHARS: Final = 6000
"""Characters of a message in which words of its context are looked for."""
_MAX_OCCURRENCES: Final = 40
"""Messages of one kind that are looked at; more are counted."""
_LOADED_PATH: Final = re.compile(
    r"(?:load|load_file|load_model|load_checkpoint|open|safe_open|from_pretrained"
    r"|load_from_checkpoint)\(\s{0,20}(?:model, ?)?(?:f=|filename=|path=)?[rb]?[\"']"
    r"([^\"'{}\n]{1,300}\.(?:pth|pt|ckpt|bin|safetensors|pkl|tar))[\"']"
)


class ExplainedError(Struct, frozen=True):
    """An explanation, and where in the log the error is."""

    explanation: Explanation
    quote: str
    """The first line of the message."""
    line: int
    """Its number in the log, from 1."""
    count: int = 1
    """How often the log has it: once from every rank, for example."""


def explain_log(text: str, facts: ErrorFacts | None = None) -> tuple[ExplainedError, ...]:
    """Return the explanations of all known errors in a log, in the order of the log.

    Args:
        text: a message, a traceback or a log.
        facts: what is known in addition; without a checkpoint, it is the path that a traceback
            shows.
    """
    return explain_clean_log(clean_log(text), facts)


def explain_clean_log(log: LogText, facts: ErrorFacts | None = None) -> tuple[ExplainedError, ...]:
    """Return the result of `explain_log` of lines that were cleaned."""
    explained: dict[Explanation, ExplainedError] = {}
    found_names: set[str] = set()
    for known_error in KNOWN_ERRORS:
        if not found_names.isdisjoint(known_error.part_of):
            continue
        indices = [*islice(log.find_words(known_error.marker), _MAX_OCCURRENCES)]
        known_messages: dict[tuple[str, ...], tuple[Explanation, ...]] = {}
        for index, end in pairwise((*indices, len(log.lines))):
            message = _read_message(log, index, end, known_error)
            if message not in known_messages:  # each rank, and each retry, has the same
                known_messages[message] = _explain_message(known_error, message, facts)
            found_names.update([known_error.name] if known_messages[message] else [])
            for explanation in known_messages[message]:
                line = log.lines[index].strip()
                new_error = ExplainedError(explanation, line, log.numbers[index], 0)
                error = explained.get(explanation, new_error)
                explained[explanation] = replace(error, count=error.count + 1)
    return tuple(sorted(explained.values(), key=lambda error: error.line))


def _read_message(log: LogText, index: int, end: int, known_error: KnownError) -> tuple[str, ...]:
    """Return the traceback before a line, and the texts in which a pattern is looked for.

    A message that begins on the line before is looked at last.
    """
    return (
        log.join_preceding(index),
        *log.join_following(index, end, known_error.max_chars),
        *log.join_following(max(0, index - 1), end, _MAX_CONTEXT_CHARS),
    )


def _explain_message(
    known_error: KnownError, message: tuple[str, ...], facts: ErrorFacts | None
) -> tuple[Explanation, ...]:
    """Return the explanations of a message; () if it is another one with the same words."""
    traceback, *texts = message
    if not _is_in_context(known_error, traceback + texts[0][:_MAX_CONTEXT_CHARS]):
        return ()
    facts = facts or ErrorFacts()
    if not facts.checkpoint:
        facts = replace(facts, checkpoint=_find_loaded_path(traceback))
    pattern = _compile_pattern(known_error)
    for text in texts:
        match = pattern.search(text)
        if match is not None:
            return tuple(explain_match(known_error, match, facts))
    return ()


def _is_in_context(known_error: KnownError, text: str) -> bool:
    """Return whether a traceback and its message are of the kind that the error needs."""
    if not known_error.contexts and not known_error.other_contexts:
        return True
    context = squeeze_spaces(text)
    if any(squeeze_spaces(word) in context for word in known_error.other_contexts):
        return False
    words = known_error.contexts
    return not words or any(squeeze_spaces(word) in context for word in words)


@lru_cache(maxsize=256)
def _compile_pattern(known_error: KnownError) -> re.Pattern[str]:
    if known_error.pattern:
        return re.compile(known_error.pattern, re.DOTALL)
    return re.compile(re.escape(known_error.marker), re.IGNORECASE)


def _find_loaded_path(traceback: str) -> str:
    """Return the path that a line of the traceback loads, "" if there is none or several."""
    paths = {match[1] for match in _LOADED_PATH.finditer(traceback)}
    return paths.pop() if len(paths) == 1 else ""

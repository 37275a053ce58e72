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

_MAX_MESSAGE_CHARS: Final = 6000
_MAX_KEYS_CHARS: Final = 2_000_000
"""Characters of a list of keys."""
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
        facts: what is known in addition; None takes the path that a traceback shows.
    """
    return explain_clean_log(clean_log(text), facts)


def explain_clean_log(log: LogText, facts: ErrorFacts | None = None) -> tuple[ExplainedError, ...]:
    """Return the result of `explain_log` of lines that were cleaned."""
    explained: dict[Explanation, ExplainedError] = {}
    for known_error in KNOWN_ERRORS:
        indices = [*islice(log.find_words(known_error.marker), _MAX_OCCURRENCES)]
        for index, end in pairwise((*indices, len(log.lines))):
            for explanation in _explain_message(log, range(index, end), known_error, facts):
                found = explained.get(explanation)
                line = log.lines[index].strip()
                explained[explanation] = (
                    replace(found, count=found.count + 1)
                    if found is not None
                    else ExplainedError(explanation, line, log.numbers[index])
                )
    return tuple(sorted(explained.values(), key=lambda error: error.line))


def _explain_message(
    log: LogText, lines: range, known_error: KnownError, facts: ErrorFacts | None
) -> tuple[Explanation, ...]:
    """Return the explanations of the message that begins in the first of `lines`.

    () if it is another message with the same words.
    """
    index, end = lines.start, lines.stop
    max_chars = _MAX_KEYS_CHARS if known_error.find is not None else _MAX_MESSAGE_CHARS
    before = log.join_preceding(index)
    following = log.join_following(index, end, max_chars)
    if not _is_in_context(known_error, before + following[0][:_MAX_MESSAGE_CHARS]):
        return ()
    facts = facts or ErrorFacts(checkpoint=_find_loaded_path(before))
    pattern = _compile_pattern(known_error)
    # A message whose beginning is on the line before is looked at last.
    for text in (*following, *log.join_following(max(0, index - 1), end, _MAX_MESSAGE_CHARS)):
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

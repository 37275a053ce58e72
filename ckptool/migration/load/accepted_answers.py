"""`accept=[...]` of a load <-> the questions that it answers."""

import re
import shlex
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from ckptool.errors import UsageError
from ckptool.migration.plan.suggest import PlanChoices

_RENAMES: Final = "renames"
_CODE_PATTERN: Final = r"CK\d+"
_OPTION: Final = r"""--(drop|rename|inject) ('(?:[^']|'\"'\"')*'|"[^"]*"|[^\s,]+)"""
"""An option of the command, as the questions of a migration name it."""


class AcceptedAnswers(Struct, frozen=True):
    """What the caller decides about keys, values and findings."""

    choices: PlanChoices = PlanChoices()
    ignored_codes: tuple[str, ...] = ()
    """Rules whose findings do not refuse the load."""


def parse_answers(answers: Sequence[str]) -> AcceptedAnswers:
    """Return the meaning of `accept=[...]`.

    Raises:
        UsageError: one of them is no answer.
    """
    if isinstance(answers, str):
        raise UsageError(f"accept= is a list: accept=[{answers!r}]")
    drops: list[str] = []
    renames: dict[str, str] = {}
    inject: dict[str, str] = {}
    codes: list[str] = []
    accepts_renames = False
    for answer in answers:
        verb, _, operand = str(answer).strip().partition(" ")
        name, has_value, value = operand.strip().partition("=")
        if str(answer).strip() == _RENAMES:
            accepts_renames = True
        elif re.fullmatch(_CODE_PATTERN, verb) and not operand:
            codes.append(verb)
        elif verb == "drop" and operand.strip():
            drops.append(operand.strip())
        elif verb == "rename" and name and has_value and value:
            renames[name] = value
        elif verb == "inject" and name and has_value and value:
            inject[name] = value
        else:
            raise UsageError(
                f"accept={[answer]!r}: give 'drop KEY', 'rename OLD=NEW', 'inject KEY=SOURCE', "
                "'renames' for all that are unambiguous, or the code of a rule"
            )
    return AcceptedAnswers(PlanChoices(inject, tuple(drops), renames, accepts_renames), (*codes,))


_NO_VALUE: Final = (
    r"--inject (?:KEY=file:DONOR#KEY for each of them"
    r"|\S+?=file:DONOR#[^\s,]+(?:, or another source)?)"
)
"""The option of a question on keys that the file does not have."""


def format_question(question: str) -> str:
    """Return a question of a migration with the `accept=[...]` that answers it."""
    named = re.match(r"`([^`]+)`", question)
    if named is None:
        return format_in_python(question)
    answer = f"accept={[f'inject {named[1]}=constructor']!r} keeps what the module has"
    return format_in_python(re.sub(_NO_VALUE, lambda _: answer, question))


def format_in_python(text: str) -> str:
    """Return a message of a migration with `accept=[...]` in the place of the command's options."""
    text = text.replace(", according to --rename", ", as asked")
    pattern = rf"{_OPTION}(?: {_OPTION})*"
    text = re.sub(pattern, lambda match: _format_accept(match.group()), text)
    text = text.replace("--accept-renames", f"accept=[{_RENAMES!r}]").replace("--at ", "at=")
    return re.sub(
        rf"--ignore {_CODE_PATTERN}(?: --ignore {_CODE_PATTERN})*",
        lambda match: f"accept={re.findall(_CODE_PATTERN, match.group())!r}",
        text,
    )


def _format_accept(options: str) -> str:
    # A live module has initial values: those of a seed would need its constructor.
    answers = [
        f"{verb} {re.sub('=seed:0$', '=constructor', shlex.split(operand)[0])}"
        for verb, operand in re.findall(_OPTION, options)
    ]
    return f"accept={answers!r}"

"""ObjectChanges -> hits: what the state_dict of an optimizer or sampler lacks (CK336, CK337)."""

import re
from collections.abc import Iterator
from typing import Final

from ckptool.phrases import quote_python
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit
from ckptool.verification.result import ObjectChanges

_ATTRIBUTE_PATH: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
"""Path that is a sequence of attributes, which code can name as it is."""
LOST_OBJECT_STATE: Final = "CK336"
"""Code of findings about values of an optimizer, scheduler, ... that a load does not restore."""


@check(
    ObjectChanges,
    Rule(
        code=LOST_OBJECT_STATE,
        name="object-state-not-restored",
        level=Level.WARNING,
        summary=(
            "`{key}` of {name} changed{change} {since}, and load_state_dict() does not restore it"
        ),
        detail="a resumed run continues with a different value",
        why=(
            "Optimizers, schedulers, samplers and averages are saved by their own state_dict(). "
            "What is not in it is lost when training resumes: it continues, but not as an "
            "uninterrupted run would."
        ),
        fix=("In {name}: {code}. If {name} is a module, register it as a buffer instead."),
        general_advice=(
            'In NAME: state["KEY"] = self.KEY in state_dict(), and self.KEY = state["KEY"] '
            "in load_state_dict(). If NAME is a module, register it as a buffer instead."
        ),
        example=(
            "class Sampler:\n"
            "    def __init__(self):\n"
            "        self.epoch, self.position = 0, 0\n"
            "\n"
            "    def state_dict(self):\n"
            '        return {"epoch": self.epoch}  # and not the position'
        ),
    ),
)
def find_lost_object_state(changes: ObjectChanges) -> Iterator[RuleHit]:
    for change in changes.lost:
        text = f" from {change.before} to {change.after}" if change.before else ""
        is_opaque = change.before == change.after
        yield hit(
            change.path,
            None if change.is_plain_number else Level.ERROR,
            name=changes.name,
            since=changes.since,
            code=_format_restore_code(change.path),
            change="" if is_opaque else text,
        )


def _format_restore_code(path: str) -> str:
    """Return the line that saves a value and the line that restores it."""
    name = quote_python(path)
    if not _ATTRIBUTE_PATH.fullmatch(path):
        return f"return {path} from state_dict(), and set it in load_state_dict()"
    return (
        f"state[{name}] = self.{path} in state_dict(), and self.{path} = state[{name}] in"
        " load_state_dict()"
    )


@check(
    ObjectChanges,
    Rule(
        code="CK337",
        name="object-state-does-not-load",
        level=Level.ERROR,
        summary="{key} does not load its own state_dict(): {error}",
        why=(
            "A checkpoint of it can be written, and training cannot be resumed from it: "
            "load_state_dict() raises."
        ),
        fix=(
            "Have load_state_dict() of {key} take what its state_dict() returns. If the keys are"
            " names of its attributes, in class {key}: def load_state_dict(self, state):"
            " vars(self).update(state)"
        ),
        example=(
            "class Average:\n"
            "    def state_dict(self):\n"
            '        return {"shadow": self.shadow}\n'
            "\n"
            "    def load_state_dict(self, state):\n"
            '        self.shadow = state["average"]  # KeyError'
        ),
    ),
)
def find_unloadable_object_state(changes: ObjectChanges) -> Iterator[RuleHit]:
    if changes.load_error:
        yield hit(changes.name, error=changes.load_error)

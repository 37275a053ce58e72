"""ResumeComparison -> hits: what a resumed run has otherwise (CK334, CK335)."""

import re
from collections.abc import Iterator
from typing import Final

from ckptool.phrases import join_limited, quote_code
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit
from ckptool.tracing.resume_comparison import ResumeComparison

_MAX_LISTED: Final = 3
_MAX_VALUE_CHARS: Final = 24
_OPTIMIZER: Final = (
    'Of an optimizer: checkpoint["optimizer"] = optimizer.state_dict() before '
    'torch.save(checkpoint, path), and optimizer.load_state_dict(checkpoint["optimizer"]) when '
    "the run is resumed"
)
_ATTRIBUTE_OF: Final = re.compile(r"`([^\W\d]\w*(?:\.[^\W\d]\w*)*)` of .+")
"""A value that is an attribute of a module."""


@check(
    ResumeComparison,
    Rule(
        code="CK334",
        name="resumed-run-differs",
        level=Level.ERROR,
        summary="resumed from {checkpoint}, the run saves different values to {file}: {count} of "
        "{total} differ",
        detail="{keys}; two uninterrupted runs save equal values",
        why=(
            "Part of the training state is not in the checkpoint, or is not restored from it: the "
            "loss curve has a step where the job was interrupted. This is the result; the line to "
            "change is in the findings about the state that was lost."
        ),
        fix="{remedy}",
        general_advice=(
            f"Save and restore what the findings CK335 name, with the lines in them. {_OPTIMIZER}"
        ),
        example=(
            'torch.save({"model": model.state_dict()}, path)  # and neither optimizer nor schedule'
        ),
    ),
)
def find_resumed_differences(comparison: ResumeComparison) -> Iterator[RuleHit]:
    save = comparison.save
    if save is None or not save.saved_differences:
        return
    names = [name for name, _, _ in save.live_differences]
    yield hit(
        save.saved_differences[0],
        checkpoint=comparison.checkpoint,
        file=save.file,
        count=len(save.saved_differences),
        total=save.saved_count,
        keys=join_limited(save.saved_differences, _MAX_LISTED, quote_code),
        remedy=f"Save and restore {join_limited(names, _MAX_LISTED)}: the findings CK335 have the"
        " lines"
        if names
        else f"Save and restore optimizer, schedule and data order too. {_OPTIMIZER}",
    )


@check(
    ResumeComparison,
    Rule(
        code="CK335",
        name="state-not-resumed",
        level=Level.WARNING,
        summary="{key} is not restored: {old} in the uninterrupted run, {new} in the resumed run",
        detail="compared when {file} is saved: the checkpoint does not contain it, or the script "
        "does not restore it",
        why=(
            "The value is equal in two uninterrupted runs, and different after a resume: it is "
            "training state that the checkpoint does not restore."
        ),
        fix="{remedy}",
        general_advice="Save it in the checkpoint, and set it when the run is resumed.",
        example=("model.steps += 1  # in each training step\ntorch.save(model.state_dict(), path)"),
    ),
)
def find_state_not_resumed(comparison: ResumeComparison) -> Iterator[RuleHit]:
    save = comparison.save
    for name, old_value, new_value in save.live_differences if save is not None else ():
        is_readable = len(old_value) <= _MAX_VALUE_CHARS and len(new_value) <= _MAX_VALUE_CHARS
        yield hit(
            name,
            file=save.file if save is not None else "",
            old=old_value if is_readable else "one value",
            new=new_value if is_readable else "another value",
            remedy=_advise_restoring(name),
        )


def _advise_restoring(name: str) -> str:
    """Return the lines that save and set a value, of a name such as "`steps` of net.Net"."""
    attribute = _ATTRIBUTE_OF.fullmatch(name)
    if attribute is None:
        return "Save it in the checkpoint, and set it when the run is resumed."
    path = attribute[1]
    return (
        f'checkpoint["{path}"] = model.{path} before torch.save(checkpoint, path), and'
        f' model.{path} = checkpoint["{path}"] when the run is resumed'
    )

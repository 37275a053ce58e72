"""Checkpoint x Requirements -> Verification, and required levels that did not pass."""

from typing import TYPE_CHECKING

from ckptool.api.target import Target
from ckptool.config import Requirements
from ckptool.model import Checkpoint

if TYPE_CHECKING:
    from ckptool.verification.facts import Verification

_NO_CUDA = (
    'there is no CUDA device here; device = "simulated" or "auto" in [tool.ckptool.require] says '
    "that a simulated one is enough"
)
_ON_A_DEVICE = ("device", "forward")


def verified(
    checkpoint: Checkpoint, target: Target, require: Requirements, inputs: object
) -> "tuple[Verification | None, dict[str, str]]":
    """Run the required verification; also return level -> why it did not pass, "" if it passed.

    None and {} if no level is required.

    Raises:
        ModuleError: the module cannot be built.
        UsageError: forward does not accept the inputs.
    """
    if not require.verify:
        return None, {}
    import torch

    from ckptool.verification import levels, running
    from ckptool.verification.inputs import given

    wanted = require.device or "cuda"
    lacking = wanted == "cuda" and not torch.cuda.is_available()
    where = running.choose("cpu" if lacking else wanted)
    with target.side(checkpoint) as side:
        done = levels.verify(side, where, given(target.inputs if inputs is None else inputs))
    steps = steps_of(require, done, "")
    if lacking:
        steps |= {step: _NO_CUDA for step in _ON_A_DEVICE if step in steps}
    return done, steps


def steps_of(require: Requirements, done: "Verification | None", reason: str) -> dict[str, str]:
    """Return required level -> why it did not pass, "" if passed; `reason` if none was run."""
    if done is None:
        return dict.fromkeys(require.verify or (), reason)
    results = {str(one.level): one for one in done.levels}
    return {
        step: ""
        if results[step].status == "passed"
        else ": ".join(filter(None, (str(results[step].status), results[step].reason)))
        for step in require.verify or ()
    }

"""Checkpoint x Requirements -> Verification, and required levels that did not pass."""

from typing import TYPE_CHECKING

from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.requests import VerifyCheckpoint
from ckptool.commands.worker.worker import ModuleWorker
from ckptool.config import ReleaseRequirements
from ckptool.model import Checkpoint

if TYPE_CHECKING:
    from ckptool.verification.result import Verification

_NO_CUDA = (
    'no CUDA device is available; device = "simulated" or "auto" in [tool.ckptool.require] '
    "accepts a simulated one"
)
_DEVICE_LEVELS = ("device", "forward")


def run_required_verification(
    checkpoint: Checkpoint,
    module_target: ModuleTarget,
    require: ReleaseRequirements,
    inputs: object,
    worker: ModuleWorker,
) -> "tuple[Verification | None, dict[str, str]]":
    """Run the required verification; also return level -> why it did not pass, "" if it passed.

    None and {} if no level is required.

    Raises:
        ModuleError: the module cannot be built.
        UsageError: forward does not accept the inputs.
    """
    if not require.verify:
        return None, {}
    result = worker.ask(
        VerifyCheckpoint(
            module_target,
            checkpoint,
            require.device or "cuda",
            takes_cpu_for_cuda=True,
            inputs=inputs,
        )
    )
    verification = result.verification
    failures = required_level_failures(require, verification, "")
    if result.lacks_cuda:
        failures |= {level: _NO_CUDA for level in _DEVICE_LEVELS if level in failures}
    return verification, failures


def required_level_failures(
    require: ReleaseRequirements, verification: "Verification | None", reason: str
) -> dict[str, str]:
    """Return required level -> why it did not pass, "" if passed; `reason` if none was run."""
    if verification is None:
        return dict.fromkeys(require.verify or (), reason)
    results = {str(result.level): result for result in verification.levels}
    return {
        level: ""
        if results[level].status == "passed"
        else ": ".join(filter(None, (str(results[level].status), results[level].reason)))
        for level in require.verify or ()
    }

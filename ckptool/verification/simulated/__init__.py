"""nn.Module x Inputs -> ForwardPass on a simulated CUDA device.

Every storage is tagged with a device, and the CPU does the arithmetic. A tensor left on the CPU is
reported at the operation where CUDA would raise; the pass continues, to find the other mismatches.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ckptool.model import Kind
from ckptool.modules.usercode import UserCodeError
from ckptool.modules.walk import Found, walk
from ckptool.verification.passes import Inputs, Pass, prepared
from ckptool.verification.simulated.answers import answering
from ckptool.verification.simulated.below import Below
from ckptool.verification.simulated.front import Front
from ckptool.verification.simulated.record import Record
from ckptool.verification.simulated.tags import CPU, Origin, Tags

_WORDS = {
    Kind.PARAMETER: "a parameter",
    Kind.BUFFER: "a buffer",
    Kind.NON_PERSISTENT_BUFFER: "a buffer",
    Kind.ATTRIBUTE: "a plain attribute, not registered",
    Kind.CONTAINER: "held in a container, not registered",
    Kind.MODULE: "of a module outside the tree",
    Kind.CLASS_ATTRIBUTE: "a class attribute",
}


def run(module: nn.Module, inputs: Inputs, device: torch.device) -> Pass:
    """Move `module` and `inputs` to a simulated `device`, and run forward.

    Mutates `module`; do not use it again.
    """
    where = f"simulated {device}"
    tags = Tags()
    record = Record(tags, device)
    output, moved = None, False
    try:
        with prepared(module), answering(device):
            _name_registered(tags, module)
            record.moving = True
            with Below(record), Front(record):
                module.to(device)
            record.moving, moved = False, True
            _name_loose(tags, module)
            _name_inputs(tags, inputs)
            with record.following(module), Below(record), Front(record):
                there = inputs.each(lambda tensor: tensor.to(device))
                output = _call(module, there)
    except UserCodeError as error:
        return _pass(where, record, moved=moved, error=error)
    return _pass(where, record, moved=moved, output=output)


def _pass(
    where: str,
    record: Record,
    *,
    moved: bool,
    output: Any = None,
    error: UserCodeError | None = None,
) -> Pass:
    return Pass(
        device=where,
        output=output,
        error=error,
        moved=moved,
        clashes=record.clashes,
        unmodelled=record.unmodelled,
        used=record.used,
    )


def _call(module: nn.Module, inputs: Inputs) -> Any:
    return module(*inputs.args, **inputs.kwargs)


def _name_registered(tags: Tags, module: nn.Module) -> None:
    for found in walk(module).found:
        if found.registered and not tags.knows(found.value):
            tags.put(found.value, CPU, _origin(found))


def _name_loose(tags: Tags, module: nn.Module) -> None:
    """Tag tensors that `module.to` did not move; a view of a buffer is now a separate tensor."""
    for found in walk(module).found:
        if not isinstance(found.value, Tensor):
            tags.name_array(found.value, found.path)
        elif not found.registered and tags.device(found.value) == CPU:
            tags.put(found.value, CPU, _origin(found))


def _name_inputs(tags: Tags, inputs: Inputs) -> None:
    def name(tensor: Tensor) -> Tensor:
        if not tags.knows(tensor):
            tags.put(tensor, CPU, Origin("", "an input"))
        return tensor

    inputs.each(name)


def _origin(found: Found) -> Origin:
    return Origin(found.path, _WORDS.get(found.kind, "held by the module"))

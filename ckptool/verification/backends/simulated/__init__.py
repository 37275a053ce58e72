"""nn.Module x Inputs -> ForwardPass on a simulated CUDA device.

Every storage is tagged with a device, and the CPU does the arithmetic. A tensor left on the CPU is
reported at the operation where CUDA would raise; the pass continues, to find the other mismatches.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ckptool.model import Kind
from ckptool.modules.user_code import UserCodeError
from ckptool.modules.walk import FoundTensor, walk_module
from ckptool.modules.world.cuda_on_cpu import is_placed_on_cuda
from ckptool.modules.world.patched_cuda import patched_cuda_queries
from ckptool.verification.backends.simulated.device_tags import CPU, DeviceTags, Origin
from ckptool.verification.backends.simulated.dispatch_mode import DeviceCheckDispatchMode
from ckptool.verification.backends.simulated.function_mode import DeviceFunctionMode
from ckptool.verification.backends.simulated.tracker import DeviceTracker
from ckptool.verification.forward_pass import ForwardPass, Inputs, prepare_forward

_ORIGIN_TEXTS = {
    Kind.PARAMETER: "a parameter",
    Kind.BUFFER: "a buffer",
    Kind.NON_PERSISTENT_BUFFER: "a buffer",
    Kind.ATTRIBUTE: "a plain attribute, not registered",
    Kind.CONTAINER: "in a plain container, not registered",
    Kind.MODULE: "of a module that is not registered",
    Kind.CLASS_ATTRIBUTE: "a class attribute",
}


def run_simulated(module: nn.Module, inputs: Inputs, device: torch.device) -> ForwardPass:
    """Move `module` and `inputs` to a simulated `device`, and run forward.

    Mutates `module`; do not use it again.
    """
    device_label = f"simulated {device}"
    tags = DeviceTags()
    tracker = DeviceTracker(tags, device)
    output, is_moved = None, False
    try:
        with prepare_forward(module), patched_cuda_queries(device):
            _tag_registered(tags, module)
            tracker.is_moving = True
            with DeviceCheckDispatchMode(tracker), DeviceFunctionMode(tracker):
                module.to(device)
            tracker.is_moving, is_moved = False, True
            _tag_unmoved(tags, module, device)
            _tag_inputs(tags, inputs)
            with (
                tracker.track_modules(module),
                DeviceCheckDispatchMode(tracker),
                DeviceFunctionMode(tracker),
            ):
                device_inputs = inputs.map_tensors(lambda tensor: tensor.to(device))
                output = _call_forward(module, device_inputs)
    except UserCodeError as error:
        return _build_pass(device_label, tracker, is_moved=is_moved, error=error)
    return _build_pass(device_label, tracker, is_moved=is_moved, output=output)


def _build_pass(
    device_label: str,
    tracker: DeviceTracker,
    *,
    is_moved: bool,
    output: Any = None,
    error: UserCodeError | None = None,
) -> ForwardPass:
    return ForwardPass(
        device=device_label,
        output=output,
        error=error,
        is_moved=is_moved,
        device_mismatches=tracker.device_mismatches,
        unmodelled_operations=tracker.unmodelled_operations,
        first_uses=tracker.first_uses,
    )


def _call_forward(module: nn.Module, inputs: Inputs) -> Any:
    return module(*inputs.args, **inputs.kwargs)


def _tag_registered(tags: DeviceTags, module: nn.Module) -> None:
    for found_tensor in walk_module(module).tensors:
        if found_tensor.is_registered and not tags.has_tag(found_tensor.value):
            tags.set_tag(found_tensor.value, CPU, _build_origin(found_tensor))


def _tag_unmoved(tags: DeviceTags, module: nn.Module, device: torch.device) -> None:
    """Tag tensors that `module.to` did not move; a view of a buffer is now a separate tensor.

    What the constructor itself put on a CUDA device is there.
    """
    for found_tensor in walk_module(module).tensors:
        if not isinstance(found_tensor.value, Tensor):
            tags.add_array(found_tensor.value, found_tensor.path)
        elif not found_tensor.is_registered and tags.get_device(found_tensor.value) == CPU:
            place = device if is_placed_on_cuda(found_tensor.value) else CPU
            tags.set_tag(found_tensor.value, place, _build_origin(found_tensor))


def _tag_inputs(tags: DeviceTags, inputs: Inputs) -> None:
    def tag_input(tensor: Tensor) -> Tensor:
        if not tags.has_tag(tensor):
            tags.set_tag(tensor, CPU, Origin("", "an input"))
        return tensor

    inputs.map_tensors(tag_input)


def _build_origin(found_tensor: FoundTensor) -> Origin:
    return Origin(found_tensor.path, _ORIGIN_TEXTS.get(found_tensor.kind, "of the module"))

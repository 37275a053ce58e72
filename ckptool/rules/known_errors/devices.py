"""Known errors about devices and dtypes."""

from typing import Final

from ckptool.rules.known_errors.known_error import Advice, Certainty, KnownError

_VERIFY: Final = Advice(
    "to find the tensor, without a GPU",
    command="ckptool verify {file:path} {module_options} --device simulated",
)

DEVICE_ERRORS: Final = (
    KnownError(
        name="tensors-on-two-devices",
        marker="Expected all tensors to be on the same device",
        pattern=(
            r"Expected all tensors to be on the same device,? (?:but (?:found at least two devices,"
            r" (?P<first>[\w:]{1,20}) and (?P<second>[\w:]{1,20})|got|found)|and|so)"
        ),
        cause=(
            "two tensors of one operation are on different devices: an input that was not moved, "
            "or "
            "a tensor that `.to(device)` does not move since it is a plain attribute of a module "
            "and not a buffer"
        ),
        certainty=Certainty.PROBABLE,
        advice=(
            Advice("to find such attributes", command="ckptool audit {module_options}"),
            _VERIFY,
            Advice(
                "register it, so that it moves with the module",
                code='self.register_buffer("mask", mask, persistent=False)',
            ),
        ),
    ),
    KnownError(
        name="input-on-other-device",
        marker="should be the same",
        pattern=(
            r"Input type \((?P<first>[\w.:]{1,60})\) and (?:weight|bias) type"
            r" \((?P<second>[\w.:]{1,60})\) should be the same"
        ),
        cause=(
            "the input is a {first}, the weights are {second}: one of the two was not moved or cast"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "move and cast the input to the weights",
                code="p = next(model.parameters()); x = x.to(p.device, p.dtype)",
            ),
            Advice("to find tensors that do not follow", command="ckptool audit {module_options}"),
        ),
    ),
    KnownError(
        name="saved-on-cuda",
        marker="Attempting to deserialize object on a CUDA device but torch.cuda.is_available()",
        cause="the checkpoint was saved from a GPU, and there is none here",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "load it to the CPU",
                code='torch.load({file:py}, map_location="cpu", weights_only=True)',
            ),
            Advice(
                "or write it without device tags",
                command="ckptool convert {file:path} -o {safetensors:sh}",
            ),
        ),
    ),
    KnownError(
        name="saved-on-other-cuda",
        marker="Attempting to deserialize object on CUDA device",
        pattern=(
            r"Attempting to deserialize object on CUDA device (?P<number>\d{1,3}) but"
            r" torch\.cuda\.device_count\(\) is (?P<count>\d{1,3})"
        ),
        cause="the checkpoint was saved from GPU {number}, and there are only {count} here",
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "load it to the CPU first",
                code='torch.load({file:py}, map_location="cpu", weights_only=True)',
            ),
            Advice(
                "or write it without device tags",
                command="ckptool convert {file:path} -o {safetensors:sh}",
            ),
        ),
    ),
    KnownError(
        name="meta-tensor",
        marker="Cannot copy out of meta tensor; no data!",
        other_contexts=("While copying the parameter named",),
        cause=(
            "the model, or a part of it, is on the meta device and has no values: it was built "
            'under torch.device("meta") or init_empty_weights(), or keys of it were missing when '
            "it was loaded"
        ),
        certainty=Certainty.CERTAIN,
        advice=(
            Advice(
                "load the weights into it before it is moved",
                code="model.load_state_dict(state_dict, assign=True)",
            ),
            Advice(
                "to see which keys the checkpoint lacks",
                command="ckptool diff {file:path} {module_options}",
            ),
        ),
    ),
    KnownError(
        name="not-enough-gpu-memory",
        marker="CUDA out of memory. Tried to allocate",
        pattern=r"CUDA out of memory\. Tried to allocate .{0,40}",
        contexts=("torch/serialization.py", "load_state_dict", "safetensors", "from_pretrained"),
        cause=(
            "loading the checkpoint needs more memory than the GPU has free: it may be there twice"
        ),
        certainty=Certainty.POSSIBLE,
        advice=(
            Advice(
                "read it without a copy on the GPU",
                code='torch.load({file:py}, map_location="cpu", mmap=True, weights_only=True)',
            ),
            Advice("to see its size and dtypes", command="ckptool inspect {file:path}"),
        ),
    ),
)

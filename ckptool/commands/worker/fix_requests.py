"""Questions about a module before and after an edit of its source."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ckptool.commands.sources.file_arguments import FileArguments
from ckptool.commands.worker.requests import ModuleRequest
from ckptool.verification.result import DeviceMismatch, LevelResult

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ckptool.commands.worker.session import ModuleSession
    from ckptool.verification.forward_pass import Inputs


class ModuleRun(Struct, frozen=True):
    """What a module computes, as digests that another process can compare."""

    state: Mapping[str, str]
    """Key of the state_dict -> digest of the value that building under a seed gives it."""
    outputs: Mapping[str, Mapping[str, str]] = {}
    """Mode, "eval" or "train" -> place in the output -> digest."""
    errors: Mapping[str, str] = {}
    """Mode in which forward raised -> the error."""
    unrun_reason: str = ""
    """Why forward was not run, "" if it was."""
    device_level: LevelResult | None = None
    """Result of the device level; None if forward was not run."""
    device_mismatches: tuple[DeviceMismatch, ...] = ()
    source_files: tuple[str, ...] = ()
    """Files that define the classes of the module and its sub-modules."""


class RunModule(ModuleRequest[ModuleRun], frozen=True):
    """What does the module compute, in eval and train mode, and on a device?"""

    answer_type = ModuleRun
    inputs: object = None
    device: str = "auto"
    save_to: Path | None = None
    """File for the state_dict of the built module; None to save nothing."""

    def answer(self, session: "ModuleSession") -> ModuleRun:  # noqa: ARG002
        from ckptool.verification.module_factory import open_module_factory

        spec = self.target.build_spec(FileArguments())
        with open_module_factory(spec) as factory:
            module = factory.create_module()
            state = {key: _digest(value) for key, value in module.state_dict().items()}
            if self.save_to is not None:
                import torch

                torch.save(module.state_dict(), self.save_to)
            source_files = tuple(sorted({*_iter_source_files(module)}))
            inputs = self._find_inputs(module)
            if isinstance(inputs, str):
                return ModuleRun(state, unrun_reason=inputs, source_files=source_files)
            return self._run_modes(factory.create_module, inputs, state, source_files)

    def _find_inputs(self, module: "nn.Module") -> "Inputs | str":
        """Return the inputs, or why there are none.

        Raises:
            UsageError: those that were given are invalid.
        """
        from ckptool.verification import inputs as input_sources

        inputs = input_sources.parse_inputs(
            self.target.inputs if self.inputs is None else self.inputs
        )
        if inputs is None:
            return input_sources.inputs_from_module(module)
        input_sources.require_matching_inputs(module, inputs)
        return inputs

    def _run_modes(
        self,
        create_module: Any,
        inputs: "Inputs",
        state: Mapping[str, str],
        source_files: tuple[str, ...],
    ) -> ModuleRun:
        from torch import Tensor

        from ckptool.modules.user_code import UserCodeError
        from ckptool.verification.forward_pass import prepare_forward
        from ckptool.verification.levels import device_and_forward
        from ckptool.verification.pytree import iter_leaves

        outputs: dict[str, dict[str, str]] = {}
        errors: dict[str, str] = {}
        for mode in ("eval", "train"):
            module, copies = create_module(), inputs.map_tensors(Tensor.clone)
            try:
                with prepare_forward(module, training=mode == "train"):
                    output = module(*copies.args, **copies.kwargs)
                outputs[mode] = {path: _digest(leaf) for path, leaf in iter_leaves(output)}
            except UserCodeError as error:
                errors[mode] = str(error)
        device = device_and_forward.select_device(self.device)
        results = device_and_forward.run_device_levels(device, create_module, inputs)
        return ModuleRun(
            state,
            outputs,
            errors,
            "",
            results.levels[0],
            results.device_mismatches,
            source_files,
        )


def _digest(value: object) -> str:
    """Return a digest of a tensor's dtype, shape and bytes; of another value its text."""
    from torch import Tensor

    from ckptool.verification.pytree import is_comparable

    if not isinstance(value, Tensor):
        return repr(value) if is_comparable(value) else type(value).__qualname__
    return f"{value.dtype} {list(value.shape)} {_hash_elements(value)}"


def _hash_elements(tensor: "Tensor") -> str:
    from ckptool.values.torch_bytes import copy_tensor_bytes

    if tensor.is_sparse or tensor.is_quantized or tensor.is_meta:
        return hashlib.sha256(repr(tensor).encode()).hexdigest()
    elements = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    content = copy_tensor_bytes(elements) if elements.numel() else b""
    return hashlib.sha256(content).hexdigest()


def _iter_source_files(module: "nn.Module") -> Iterator[str]:
    import sys

    for member in module.modules():
        for base in type(member).__mro__:
            file = getattr(sys.modules.get(base.__module__), "__file__", None)
            if file:
                yield file

"""Questions about a module before and after an edit of its source."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.sources.file_arguments import FileArguments
from ckptool.commands.worker.requests import ModuleRequest
from ckptool.verification.result import DeviceMismatch, LevelResult

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ckptool.commands.worker.session import ModuleSession
    from ckptool.verification.forward_pass import Inputs

_ITEM: Final = re.compile(r"\[(?:(\d+)|'([^'\\]*)'|\"([^\"\\]*)\")\]")
UNINITIALIZED: Final = "uninitialized"


class InitialValues(Struct, frozen=True):
    """Tensors and arrays of a module that was built under a seed, registered or not."""

    digests: Mapping[str, str] = {}
    """Path, in which `convs[0]` of a list is written as `convs.0`, as of an nn.ModuleList ->
    digest, or UNINITIALIZED for memory of torch.empty()."""
    requiring_grad: frozenset[str] = frozenset()
    """Paths of those that require gradients."""


class ModuleRun(Struct, frozen=True):
    """What a module computes, as digests that another process can compare."""

    keys: tuple[str, ...]
    """Of the state_dict."""
    initial_values: InitialValues = InitialValues()
    outputs: Mapping[str, Mapping[str, str]] = {}
    """Mode, "eval" or "train" -> place in the output -> digest.

    All modules are in this mode, those in plain containers too, which eval() does not reach.
    """
    outputs_after_eval: Mapping[str, str] = {}
    """Outputs after eval() alone; {} if it reaches all modules, or if forward raises."""
    errors: Mapping[str, str] = {}
    """Mode in which forward raised -> the error."""
    unrun_reason: str = ""
    """Why forward was not run, "" if it was."""
    reload_error: str = ""
    """What load_state_dict() of a new instance raises for the state after forward, "" for nothing.
    """
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
            keys = tuple(module.state_dict())
            if self.save_to is not None:
                import torch

                torch.save(module.state_dict(), self.save_to)
            initial_values = _digest_initial_values(factory.create_module)
            source_files = tuple(sorted({*_iter_source_files(module)}))
            run = ModuleRun(keys, initial_values, source_files=source_files)
            inputs = self._find_inputs(module)
            if isinstance(inputs, str):
                return replace(run, unrun_reason=inputs)
            return self._run_modes(factory.create_module, inputs, run)

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
        self, create_module: "Callable[[], nn.Module]", inputs: "Inputs", run: ModuleRun
    ) -> ModuleRun:
        from ckptool.modules.user_code import UserCodeError
        from ckptool.verification.levels import device_and_forward

        outputs: dict[str, Mapping[str, str]] = {}
        errors: dict[str, str] = {}
        reload_error = ""
        for mode in ("eval", "train"):
            module = create_module()
            try:
                outputs[mode] = _run_forward(module, inputs, mode)
            except UserCodeError as error:
                errors[mode] = str(error)
            else:
                reload_error = reload_error or _load_into_new(module, create_module)
        device = device_and_forward.select_device(self.device)
        results = device_and_forward.run_device_levels(device, create_module, inputs)
        return replace(
            run,
            outputs=outputs,
            outputs_after_eval=_run_after_eval(create_module(), inputs),
            errors=errors,
            reload_error=reload_error,
            device_level=results.levels[0],
            device_mismatches=results.device_mismatches,
        )


def _run_forward(
    module: "nn.Module", inputs: "Inputs", mode: str, *, with_hidden: bool = True
) -> dict[str, str]:
    """Run forward in "eval" or "train" mode; return digests of its outputs.

    Args:
        module: a new instance.
        inputs: of forward; they are copied.
        mode: of all modules.
        with_hidden: set the mode of modules in plain containers too.

    Raises:
        UserCodeError: forward raises.
    """
    from torch import Tensor

    from ckptool.modules.walk import walk_module
    from ckptool.verification.forward_pass import prepare_forward
    from ckptool.verification.pytree import iter_leaves

    hidden_modules = walk_module(module).hidden_instances if with_hidden else ()
    copies = inputs.map_tensors(Tensor.clone)
    is_training = mode == "train"
    with prepare_forward(module, training=is_training):
        for hidden in hidden_modules:
            hidden.train(is_training)
        output = module(*copies.args, **copies.kwargs)
    return {path: _digest(leaf) for path, leaf in iter_leaves(output)}


def _load_into_new(module: "nn.Module", create_module: "Callable[[], nn.Module]") -> str:
    """Load the state of a module into a new instance; return the error, "" if it loads."""
    from ckptool.modules.user_code import UserCodeError, user_code

    new_module = create_module()
    try:
        with user_code():
            new_module.load_state_dict(module.state_dict())
    except UserCodeError as error:
        return str(error)
    return ""


def _run_after_eval(module: "nn.Module", inputs: "Inputs") -> dict[str, str]:
    """Return the outputs after eval() alone; {} if it reaches all modules, or forward raises."""
    from ckptool.modules.user_code import UserCodeError
    from ckptool.modules.walk import walk_module

    if not any(hidden.training for hidden in walk_module(module).hidden_instances):
        return {}
    try:
        return _run_forward(module, inputs, "eval", with_hidden=False)
    except UserCodeError:
        return {}


def _digest_initial_values(create_module: "Callable[[], nn.Module]") -> InitialValues:
    """Return digests of what a new instance holds, with the memory of torch.empty() marked."""
    import torch

    from ckptool.modules.tensors.uninitialized import UninitializedMemoryFill
    from ckptool.modules.walk import walk_module

    with UninitializedMemoryFill():
        module = create_module()
    digests: dict[str, str] = {}
    requiring_grad: set[str] = set()
    for location in walk_module(module).tensors:
        path = _format_registered_path(location.path)
        try:
            tensor = torch.as_tensor(location.value)  # an array as well
        except (TypeError, ValueError, RuntimeError):
            continue
        digests[path] = UNINITIALIZED if _is_uninitialized(tensor) else _digest(tensor)
        if tensor.requires_grad:
            requiring_grad.add(path)
    return InitialValues(digests, frozenset(requiring_grad))


def _is_uninitialized(tensor: "Tensor") -> bool:
    """Whether a tensor that was made under UninitializedMemoryFill was never written."""
    import torch

    from ckptool.modules.tensors.uninitialized import is_filled

    is_plain = type(tensor) in {torch.Tensor, torch.nn.Parameter} and not tensor.is_quantized
    has_memory = is_plain and tensor.layout is torch.strided and not tensor.is_meta
    is_marked = has_memory and bool(tensor.numel()) and tensor.dtype is not torch.bool
    return is_marked and is_filled(tensor.detach())


def _format_registered_path(path: str) -> str:
    """Return the path that a tensor has once its list or dict is registered: `convs.0.weight`."""
    return _ITEM.sub(r".\1\2\3", path)


def _digest(value: object) -> str:
    """Return a digest of a tensor's dtype, shape and bytes; of another value its text."""
    from torch import Tensor

    from ckptool.verification.pytree import is_comparable

    if not isinstance(value, Tensor):
        return repr(value) if is_comparable(value) else type(value).__qualname__
    return f"{value.dtype} {list(value.shape)} {_hash_elements(value)}"


def _hash_elements(tensor: "Tensor") -> str:
    import torch

    from ckptool.values.torch_bytes import copy_tensor_bytes

    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
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

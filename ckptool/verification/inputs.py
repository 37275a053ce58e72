"""Input specs, a safetensors file, a function or the module's example inputs -> Inputs."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ckptool.errors import ModuleError, UsageError
from ckptool.modules.import_target import ModuleSpec, prepend_search_paths, resolve_target
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.verification.forward_pass import SEED, Inputs

_SPEC: Final = re.compile(
    r"(?P<dtype>[a-z_0-9]+)\[(?P<shape>[\d,\s]*)\](?:<(?P<below>\d+))?", re.ASCII
)
_NAMED_SPEC: Final = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<rest>.*)", re.DOTALL)
_FUNCTION: Final = re.compile(r"[^\[]+:[A-Za-z_][\w.]*(?:\(.*\))?", re.DOTALL)
_EXAMPLE: Final = 'for example "float32[2,6,3]", "int64[2,8]<1000", "mask=bool[6,6]"'
_INPUT_ATTRIBUTES: Final = ("example_inputs", "example_input_array", "dummy_inputs")
"""Attributes with example inputs: ckptool's, Lightning's, transformers'."""


def parse_inputs(value: object) -> Inputs | None:
    """Return Inputs from specs, "package.module:function", or values; None if `value` is empty.

    Raises:
        UsageError: a spec is invalid, or the function fails.
    """
    if value is None or value == ():
        return None
    specs = [value] if isinstance(value, str) else value
    if not (isinstance(specs, list | tuple) and all(isinstance(spec, str) for spec in specs)):
        return value if isinstance(value, Inputs) else _split_args_kwargs(value, "the given values")
    if len(specs) == 1 and _FUNCTION.fullmatch(specs[0]):
        return _call_input_function(specs[0])
    return random_inputs(specs)


def random_inputs(specs: Sequence[str]) -> Inputs:
    """Return random inputs of the dtypes and shapes in `specs` (seed SEED), or inputs from files.

    Raises:
        UsageError: a spec is invalid, or its file cannot be read.
    """
    generator = torch.Generator().manual_seed(SEED)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for spec in specs:
        match = _NAMED_SPEC.fullmatch(spec)
        name, text = (match["name"], match["rest"]) if match else ("", spec)
        if text.endswith(".safetensors"):
            _add_file_tensors(text, name, args, kwargs)
        elif name:
            kwargs[name] = _make_random_tensor(spec, text, generator)
        else:
            args.append(_make_random_tensor(spec, text, generator))
    return Inputs(tuple(args), kwargs, "--input")


def _call_input_function(target: str) -> Inputs:
    """Call a function, "package.module:function" or "file.py:function"; return its result.

    A tuple has the positional arguments, a dict the keyword arguments, a pair (args, kwargs) both.

    Raises:
        UsageError: it cannot be imported, or raises.
    """
    spec = ModuleSpec(target, search_paths=(Path.cwd(),))
    try:
        with prepend_search_paths(spec):
            function = resolve_target(spec)
            with user_code():
                value = function()
    except ModuleError as error:
        raise UsageError(f"--inputs {error}") from error
    except UserCodeError as error:
        raise UsageError(f"--inputs {target}: {error}") from error
    return _split_args_kwargs(value, f"--inputs {target}")


def inputs_from_module(module: nn.Module) -> Inputs | str:
    """Return the module's own example inputs, or as str the reason why there are none."""
    for name in _INPUT_ATTRIBUTES:
        try:
            with user_code():
                value = getattr(module, name, None)
                value = value() if callable(value) else value
        except UserCodeError as error:
            return f"{name} of the module raised {error}"
        if value is not None:
            return _split_args_kwargs(value, f"{name} of the module")
    return "no input: pass --input or --inputs, or define example_inputs() on the module"


def require_matching_inputs(module: nn.Module, inputs: Inputs) -> None:
    """Check that `inputs` match the signature of forward.

    Raises:
        UsageError: they do not.
    """
    reason = find_signature_mismatch(module, inputs)
    if reason:
        raise UsageError(reason)


def find_signature_mismatch(module: nn.Module, inputs: Inputs) -> str:
    """Return why forward cannot be called with `inputs`, "" if it can or has no signature."""
    try:
        signature = inspect.signature(module.forward)
        signature.bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        return f"forward{signature} cannot be called with {inputs.source}: {error}"
    except ValueError:
        return ""
    return ""


def _split_args_kwargs(value: Any, source: str) -> Inputs:
    match value:
        case [tuple() | list() as args, dict() as kwargs]:
            return Inputs(tuple(args), kwargs, source)
        case dict():
            return Inputs((), value, source)
        case tuple() if not hasattr(value, "_fields"):
            return Inputs(value, {}, source)
        case Mapping():
            # A tokenizer's BatchEncoding is a Mapping but not a dict.
            return Inputs((), dict(value), source)
        case _:
            return Inputs((value,), {}, source)


def _make_random_tensor(spec: str, text: str, generator: torch.Generator) -> Tensor:
    match = _SPEC.fullmatch(text.strip())
    dtype = getattr(torch, match["dtype"], None) if match else None
    if match is None or not isinstance(dtype, torch.dtype):
        raise UsageError(f"--input {spec}: expected a dtype and a shape, {_EXAMPLE}")
    shape = tuple(int(size) for size in match["shape"].split(",") if size.strip())
    upper_bound = int(match["below"]) if match["below"] else 2
    if dtype.is_floating_point or dtype.is_complex:
        if match["below"]:
            raise UsageError(f"--input {spec}: <{upper_bound} is for integer dtypes")
        return _sample_normal(shape, dtype, generator)
    if upper_bound < 1:
        raise UsageError(f"--input {spec}: there are no non-negative integers below {upper_bound}")
    return torch.randint(0, upper_bound, shape, generator=generator).to(dtype)


def _sample_normal(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    sample_dtype = torch.complex64 if dtype.is_complex else torch.float32
    return torch.randn(shape, dtype=sample_dtype, generator=generator).to(dtype)


def _add_file_tensors(text: str, name: str, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Add the tensors of a file to `args` if named by numbers, else to `kwargs`.

    With `name`, the file must hold one tensor, which becomes that keyword argument.

    Raises:
        UsageError: the file cannot be read, or `name` is set and it does not hold one tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    load_tensors: Callable[..., dict[str, Tensor]] = load_file
    try:
        tensors = load_tensors(Path(text))
    except (OSError, SafetensorError) as error:
        raise UsageError(f"--input {text}: {error}") from error
    if name:
        if len(tensors) != 1:
            raise UsageError(f"--input {name}={text}: it contains {len(tensors)} tensors, not one")
        kwargs[name] = next(iter(tensors.values()))
        return
    positional_keys = sorted((key for key in tensors if key.isdigit()), key=int)
    args += [tensors[key] for key in positional_keys]
    kwargs.update({key: tensors[key] for key in tensors if not key.isdigit()})

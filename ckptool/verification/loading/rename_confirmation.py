"""VerificationTarget x Inputs x keys -> the keys whose values the outputs do not depend on."""

from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor, nn

from ckptool.verification.backends.cpu import run_on_cpu
from ckptool.verification.forward_pass import ForwardPass, Inputs
from ckptool.verification.levels.load import load_module_factory
from ckptool.verification.output_diff import compare_outputs
from ckptool.verification.run import select_inputs
from ckptool.verification.target import VerificationTarget

_MAX_KEYS: Final = 512
"""Maximum number of tensors that are tried; each is one forward pass or two on the CPU."""


def find_unconfirmed_keys(
    target: VerificationTarget, inputs: Inputs | None, keys: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the keys whose tensors can be exchanged for others without another output.

    Equal outputs say that a tensor has the right key only if a wrong one would change them. All
    `keys` are returned if there are more than 512, or if the module does not run.

    Args:
        target: the file, and the module that loads it.
        inputs: arguments of forward; None takes the module's own.
        keys: keys of the module.

    Raises:
        ModuleError: the module cannot be built.
        ReadError: tensors cannot be read.
    """
    loaded_factory = load_module_factory(target.factory, target.module_diff)
    usable_inputs, _ = select_inputs(loaded_factory, inputs)
    if usable_inputs is None or len(keys) > _MAX_KEYS:
        return keys
    expected = run_on_cpu(loaded_factory.create_module(), usable_inputs)
    if expected.error:
        return keys

    def changes_output(key: str) -> bool:
        for wrong_module in _iter_wrong_modules(loaded_factory.create_module, key):
            if not _is_same_output(run_on_cpu(wrong_module, usable_inputs), expected):
                return True
        return False

    return tuple(key for key in keys if not changes_output(key))


def _is_same_output(actual: ForwardPass, expected: ForwardPass) -> bool:
    return not actual.error and compare_outputs(actual.output, expected.output).is_exact


def _iter_wrong_modules(create_module: Callable[[], nn.Module], key: str) -> Iterator[nn.Module]:
    """Yield instances with other values at `key`, of the same shape and dtype."""
    for make_wrong in (_shift_values, _negate_values):
        module = create_module()
        tensor = module.state_dict(keep_vars=True)[key]
        with torch.no_grad():
            tensor.copy_(make_wrong(tensor))
        yield module


def _shift_values(tensor: Tensor) -> Tensor:
    """Return the elements moved by one place, and 1 larger if they are no indices."""
    moved = tensor.flatten().roll(1).reshape(tensor.shape)
    return moved + 1 if tensor.is_floating_point() else moved


def _negate_values(tensor: Tensor) -> Tensor:
    if tensor.dtype is torch.bool:
        return ~tensor
    return -tensor - 1 if tensor.is_floating_point() else tensor.flip(tuple(range(tensor.dim())))

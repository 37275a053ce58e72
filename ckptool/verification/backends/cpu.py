"""nn.Module x Inputs -> ForwardPass on the CPU."""

from torch import Tensor, nn

from ckptool.modules.user_code import UserCodeError
from ckptool.verification.forward_pass import ForwardPass, Inputs, prepare_forward


def run_on_cpu(module: nn.Module, inputs: Inputs) -> ForwardPass:
    """Run forward on the CPU, on copies of the inputs; an exception goes into `error`."""
    try:
        with prepare_forward(module):
            copies = inputs.map_tensors(Tensor.clone)
            return ForwardPass("cpu", module(*copies.args, **copies.kwargs))
    except UserCodeError as error:
        return ForwardPass("cpu", error=error)

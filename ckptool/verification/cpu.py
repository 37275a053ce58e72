"""nn.Module x Inputs -> ForwardPass on the CPU."""

from torch import Tensor, nn

from ckptool.modules.usercode import UserCodeError
from ckptool.verification.passes import Inputs, Pass, prepared


def run(module: nn.Module, inputs: Inputs) -> Pass:
    """Run forward on the CPU, on copies of the inputs; an exception goes into `error`."""
    try:
        with prepared(module):
            given = inputs.each(Tensor.clone)
            return Pass("cpu", module(*given.args, **given.kwargs))
    except UserCodeError as error:
        return Pass("cpu", error=error)

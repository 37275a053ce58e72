"""A simulated device takes a CPU tensor without dimensions for a number where CUDA does."""

import pytest
import torch
from verification.scalar_operands import ALL, Number

from ckptool.verification.backends import simulated
from ckptool.verification.forward_pass import Inputs


@pytest.mark.parametrize(("name", "function", "accepted"), ALL, ids=[name for name, *_ in ALL])
def test_a_number_on_the_cpu(name, function, accepted):
    found = simulated.run_simulated(
        Number(function), Inputs((torch.rand(3, 4),)), torch.device("cuda", 0)
    )
    assert found.error is None
    assert bool(found.device_mismatches) != accepted, found.device_mismatches

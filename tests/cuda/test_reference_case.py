"""Steps 2 to 4 of the reference case on a real device: the true error text, the true numbers."""

import pytest
import reference_case
import torch

from samples.attention import (
    CausalAttentionWithBuffer,
    CausalAttentionWithoutBuffers,
    example_inputs,
)

pytestmark = pytest.mark.cuda


@pytest.fixture
def pair(cuda):
    """Both versions, built one after the other right after the seed, and the inputs on CUDA."""
    torch.manual_seed(123)
    without = CausalAttentionWithoutBuffers(**reference_case.ARGUMENTS)
    with_buffer = CausalAttentionWithBuffer(**reference_case.ARGUMENTS)
    return without.to(cuda), with_buffer.to(cuda), example_inputs().to(cuda)


def test_step_2_the_plain_attribute_stays_on_the_cpu_and_the_forward_pass_fails(pair, cuda):
    module, _, inputs = pair
    with pytest.raises(RuntimeError) as failure:
        module(inputs)
    said = "expected self and mask to be on the same device, but got mask on cpu and self on cuda:0"
    assert said in str(failure.value)
    assert module.W_query.weight.device == cuda
    assert module.mask.device == torch.device("cpu")
    assert type(module.mask) is torch.Tensor


def test_step_3_moving_the_mask_by_hand_gives_the_numbers_of_the_cpu(pair, cuda):
    module, _, inputs = pair
    module.mask = module.mask.to(cuda)
    outputs = module(inputs)
    assert outputs.device == cuda
    reference_case.assert_outputs(outputs, reference_case.WITHOUT_BUFFERS)


def test_step_4_the_buffer_follows_by_itself(pair, cuda):
    _, module, inputs = pair
    assert module.mask.device == cuda
    reference_case.assert_outputs(module(inputs), reference_case.WITH_BUFFER)

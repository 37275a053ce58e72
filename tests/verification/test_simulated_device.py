"""The simulated device: what it leaves as it was, what it tells of a clash, and its limits."""

import sys
import threading

import pytest
import reference_case
import torch
from torch import nn
from verification import models
from verification.battery import Made

from ckptool.verification.backends import simulated
from ckptool.verification.forward_pass import Inputs
from samples.attention import (
    CausalAttentionWithBuffer,
    CausalAttentionWithoutBuffers,
    example_inputs,
)

DEVICE = torch.device("cuda", 0)
X = torch.linspace(-1, 1, 12).reshape(3, 4)
WATCHED = ("is_available", "device_count", "current_device", "device", "manual_seed_all")


def run(module, *args, device=DEVICE):
    return simulated.run_simulated(module, Inputs(args), device)


def test_the_reference_case():
    torch.manual_seed(123)
    without = CausalAttentionWithoutBuffers(**reference_case.ARGUMENTS)
    with_buffer = CausalAttentionWithBuffer(**reference_case.ARGUMENTS)
    found = run(without, example_inputs())
    (clash,) = found.device_mismatches
    assert (clash.attribute, clash.devices) == ("mask", ("cpu", "cuda:0"))
    assert clash.op == "aten.masked_fill_.Scalar"
    file, line = clash.where.rsplit(":", 1)
    assert file == "samples/attention.py"
    source = (sys.modules["samples.attention"].__file__, int(line))
    with open(source[0], encoding="utf-8") as text:  # noqa: PTH123
        assert "masked_fill_(self.mask" in text.read().splitlines()[source[1] - 1]
    # The pass goes on, with the numbers of the CPU: step 3, where the mask was moved by hand.
    reference_case.assert_outputs(found.output, reference_case.WITHOUT_BUFFERS)
    moved = run(with_buffer, example_inputs())
    assert moved.device_mismatches == ()
    assert moved.error is None
    reference_case.assert_outputs(moved.output, reference_case.WITH_BUFFER)


@pytest.mark.parametrize("module", [models.Plain(), models.Raises(), models.OnlyOnCuda()])
def test_everything_is_put_back(module):
    fast = torch.backends.mha.get_fastpath_enabled()
    before = {name: getattr(torch.cuda, name) for name in WATCHED}
    compiler, cudnn = torch.compile, torch.backends.cudnn.enabled
    module.train()
    run(module, X)
    assert {name: getattr(torch.cuda, name) for name in WATCHED} == before
    assert (torch.compile, torch.backends.cudnn.enabled) == (compiler, cudnn)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert module.training
    assert torch.is_grad_enabled()
    assert X.device == torch.device("cpu")
    assert not nn.modules.module._global_forward_hooks


def test_inside_a_pass_devices_are_pretended():
    seen = {}

    def look(m, x):
        seen["input"] = (x.device, x.is_cuda, x.is_cpu, x.get_device(), x.type())
        seen["weight"] = m.body.weight.device
        seen["available"] = (torch.cuda.is_available(), torch.cuda.device_count())
        seen["made"] = torch.zeros(1).device, torch.zeros(1, device="cuda").device
        seen["back"] = x.cpu().device, x.to("cpu").cuda().device
        return m.body(x)

    found = run(Made(look, body=nn.Linear(4, 4)), X, device=torch.device("cuda", 1))
    assert found.error is None
    there, cpu = torch.device("cuda", 1), torch.device("cpu")
    assert seen == {
        "input": (there, True, False, 1, "torch.cuda.FloatTensor"),
        "weight": there,
        "available": (True, 2),
        "made": (cpu, there),
        "back": (cpu, there),
    }


def test_a_clash_names_the_module_whose_forward_was_running():
    class Inner(models.WithoutScale):
        pass

    outer = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Inner()))
    (clash,) = run(outer, X).device_mismatches
    assert (clash.attribute, clash.module) == ("1.0.scale", "1.0")


def test_one_tensor_that_clashes_on_several_lines_is_told_of_each():
    def twice(m, x):
        y = x * m.scale[0]
        return y + m.scale[0]

    module = Made(twice)
    module.scale = [torch.ones(4)]
    lines = {clash.where for clash in run(module, X).device_mismatches}
    assert len(lines) == 2


def test_a_script_is_run_and_never_accused():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, x):
            return self.body(x) + torch.ones(4, device=x.device)

    found = run(torch.jit.script(Scripted()), X)
    assert found.device_mismatches == ()
    assert "a scripted module" in found.unmodelled_operations[0]


def test_what_the_constructor_of_a_user_keeps_is_not_moved():
    module = models.TwoMasks()
    first = module.first
    run(module, X)
    assert first.device == torch.device("cpu")
    assert torch.equal(first, torch.ones(4))


def test_the_values_of_a_parameter_are_those_of_the_module():
    module = models.Plain()
    expected = module(X)
    assert torch.equal(run(module, X).output, expected)


def test_uses_are_noted_where_they_happen():
    found = run(models.RandomTable(), X)
    assert found.device_mismatches == ()
    assert "tests/verification/models.py:" in found.first_uses["table"]


def test_another_thread_is_not_concerned():
    seen = []

    def elsewhere():
        seen.append(torch.zeros(1).device)

    def start(m, x):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return x

    run(Made(start), X)
    assert seen == [torch.device("cpu")]

"""Every module of the battery, clean and with each buffer made a plain attribute: right verdict."""

import pytest
import torch
from verification.battery import BUFFERS, CASES, Case, turned

from ckptool.verification.backends import simulated
from ckptool.verification.forward_pass import ForwardPass, Inputs

DEVICE = torch.device("cuda", 0)


def run(case: Case, module: torch.nn.Module) -> ForwardPass:
    torch.manual_seed(0)
    inputs = Inputs(case.args, case.kwargs)
    return simulated.run_simulated(module, inputs.map_tensors(torch.Tensor.clone), DEVICE)


def verdict(found: ForwardPass) -> str:
    if found.device_mismatches:
        return "clashes"
    return "inconclusive" if found.unmodelled_operations or found.error else "passes"


def test_the_battery_is_large_enough():
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    assert len(BUFFERS) >= 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_clean(case):
    found = run(case, case.build())
    assert verdict(found) == case.clean, (
        found.error,
        found.unmodelled_operations,
        found.device_mismatches,
    )
    assert tuple(sorted(clash.attribute for clash in found.device_mismatches)) == case.clashing
    for clash in found.device_mismatches:
        assert "battery.py:" in clash.where or "torch/nn/modules" in clash.where


@pytest.mark.parametrize(("case", "path"), BUFFERS)
def test_buffer_made_a_plain_attribute(case, path):
    module = case.build()
    turned(module, path)
    found = run(case, module)
    if path in case.harmless:
        assert path not in {clash.attribute for clash in found.device_mismatches}
        assert found.error is None
        return
    assert {clash.attribute for clash in found.device_mismatches} == {path}, (
        found.error,
        found.device_mismatches,
    )
    assert {clash.devices for clash in found.device_mismatches} == {("cpu", "cuda:0")}


OTHERWISE = {"lazy_layers", "autocast"}
"""One draws its weights in forward; the other computes in another dtype on the CPU."""
SAME = [case for case in CASES if case.clean == "passes" and case.name not in OTHERWISE]


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
def test_the_arithmetic_is_that_of_the_cpu(case):
    torch.manual_seed(7)
    module = case.build()
    torch.manual_seed(7)
    again = case.build()
    inputs = Inputs(case.args, case.kwargs)
    with torch.no_grad():
        module.eval()
        torch.manual_seed(0)
        plain = module(*case.args, **case.kwargs)
    found = simulated.run_simulated(again, inputs, DEVICE)
    assert found.error is None
    torch.testing.assert_close(flat(found.output), flat(plain), rtol=1e-5, atol=1e-6)


def flat(output):
    from ckptool.verification.pytree import iter_leaves

    return [leaf for _, leaf in iter_leaves(output) if isinstance(leaf, torch.Tensor)]

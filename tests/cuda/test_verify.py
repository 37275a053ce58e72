"""Verification on a real device; each test has a simulated twin in tests/verification.

`device_checks.py` runs here on CUDA and in test_device_checks.py on a simulated device. The battery
is run here to see that a real device refuses exactly what the simulated one does
(tests/verification/test_battery.py).
"""

import pytest
import torch
from verification import device_checks, models
from verification.battery import BUFFERS, CASES, turned
from verification.scalar_operands import ALL, Number

from ckptool import api
from ckptool.errors import UsageError
from ckptool.verification.backends import cuda as backend
from ckptool.verification.forward_pass import Inputs

pytestmark = pytest.mark.cuda

PROVED = [case for case in CASES if case.clean != "inconclusive"]
"""What the simulated device decides; the others need a kernel that is not here either."""
TURNED = [one for one in BUFFERS if one.values[0].name != "lazy_layers"]


def run(case, module, device):
    torch.manual_seed(0)
    inputs = Inputs(case.args, case.kwargs).map_tensors(torch.Tensor.clone)
    return backend.run_on_cuda(module, inputs, device)


@pytest.mark.parametrize("check", device_checks.CHECKS, ids=lambda check: check.__name__)
def test_on_a_real_device(check, cuda, tmp_path, samples):
    check(str(cuda), tmp_path, samples)


@pytest.mark.parametrize("case", PROVED, ids=lambda case: case.name)
def test_the_battery_as_it_is(case, cuda):
    found = run(case, case.build(), cuda)
    if case.clean == "passes":
        assert found.error is None
    else:
        assert found.error is not None
        assert backend.is_device_error(found.error.error), found.error


@pytest.mark.parametrize(("case", "path"), TURNED)
def test_the_battery_with_a_buffer_made_a_plain_attribute(case, path, cuda):
    module = case.build()
    turned(module, path)
    found = run(case, module, cuda)
    assert (found.error is None) == (path in case.harmless), found.error


def test_a_simulated_pass_works_beside_a_real_device(cuda, tmp_path):
    path = device_checks.saved(tmp_path, models.Plain())
    report = api.verify(path, module="verification.models:Plain", device="simulated")
    assert report.levels[1].status == "passed"
    assert report.device == "simulated cuda:0"


def test_auto_is_the_real_device(cuda, tmp_path):
    path = device_checks.saved(tmp_path, models.Plain())
    report = api.verify(path, module="verification.models:Plain")
    assert report.device == "cuda:0"
    assert [one.what for one in report.skipped] == []
    assert "against the CPU: largest difference" in " ".join(report.levels[2].details)


def test_out_of_memory_says_how_much_was_needed(cuda, tmp_path):
    class Huge(models.Plain):
        def forward(self, x):
            return super().forward(x) + torch.empty(1 << 44, device=x.device).sum()

    found = backend.run_on_cuda(Huge(), Inputs((torch.ones(2, 4),)), cuda)
    assert backend.is_out_of_memory(found.error.error)
    assert "parameters and buffers take" in found.note


def test_a_device_that_is_not_there(cuda, tmp_path):
    path = device_checks.saved(tmp_path, models.Plain())
    with pytest.raises(UsageError, match="numbered from 0"):
        api.verify(path, module="verification.models:Plain", device="cuda:99")


@pytest.mark.parametrize(("name", "function", "accepted"), ALL, ids=[name for name, *_ in ALL])
def test_a_number_on_the_cpu(name, function, accepted, cuda):
    found = backend.run_on_cuda(Number(function), Inputs((torch.rand(3, 4),)), cuda)
    assert (found.error is None) == accepted, found.error

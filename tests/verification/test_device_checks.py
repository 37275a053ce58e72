"""The simulated twins of tests/cuda/test_verify.py."""

import pytest
from verification.device_checks import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_a_simulated_device(check, tmp_path, samples):
    check("simulated", tmp_path, samples)

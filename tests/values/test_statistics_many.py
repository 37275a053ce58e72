"""Figures of many small tensors at once: those of each by itself."""

import math

import pytest
import torch
from files import described
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptool.formats.files.source import ByteSource
from ckptool.model import all_tensors
from ckptool.values import statistics_many
from ckptool.values.statistics import compute_statistics
from ckptool.values.statistics_many import compute_statistics_many

DTYPES = [
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn),
    *(torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64),
]
NUMBERS = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 1e-40, 3e38, 1.0, 1.0, -2.5, 0.1]
FINITE = [0.0, -0.0, 1e-45, 1.0, 1.0, 1.0, 2.5, 0.1, 2049.0]


def assert_alike(found, expected):
    for name in expected.__struct_fields__:
        figure, reference = getattr(found, name), getattr(expected, name)
        if isinstance(reference, float) and math.isnan(reference):
            reference = pytest.approx(reference, nan_ok=True)
        assert figure == reference, name


@settings(max_examples=40)
@given(st.data(), st.sampled_from(DTYPES))
def test_figures_are_those_of_each_by_itself(data, dtype):
    pool = NUMBERS if dtype.is_floating_point and data.draw(st.booleans()) else FINITE
    size = data.draw(st.integers(1, 6))
    rows = data.draw(
        st.lists(st.lists(st.sampled_from(pool), min_size=size, max_size=size), max_size=20)
    )
    state = {
        f"t{n}": torch.tensor(row, dtype=torch.float64).to(dtype) for n, row in enumerate(rows)
    }
    state["a view"] = torch.arange(12.0).to(dtype)[::2]
    state["empty"] = torch.zeros(0, dtype=dtype)
    tensors = [*described(state).states[0].tensors.values()]
    for tensor, found in zip(tensors, compute_statistics_many(tensors), strict=True):
        assert_alike(found, compute_statistics(tensor))


def test_torch_says_the_same():
    state = {f"t{n}": torch.randn(7, 3) * 10.0**n for n in range(-20, 20)}
    tensors = all_tensors(described(state))
    for (key, _), found in zip(
        tensors.items(), compute_statistics_many(tensors.values()), strict=True
    ):
        exact = state[key].double()
        assert (found.minimum, found.maximum) == (float(exact.min()), float(exact.max()))
        assert found.smallest_magnitude == float(exact.abs().min())
        assert found.exact_half_dtypes == frozenset()


def test_small_tensors_are_read_and_reduced_together(monkeypatch):
    state = {f"t{n}": torch.full((1 + n % 2,), float(n)) for n in range(5000)}
    tensors = [*described(state).states[0].tensors.values()]
    reads, singles = [], []
    read = ByteSource.read
    monkeypatch.setattr(ByteSource, "read", lambda *args: reads.append(args[1:]) or read(*args))
    monkeypatch.setattr(statistics_many, "compute_statistics", singles.append)
    found = compute_statistics_many(tensors)
    assert [one.constant_value for one in found] == [float(n) for n in range(5000)]
    assert not singles
    assert len(reads) < 10  # 5,000 before


def test_of_few_alike_each_is_by_itself():
    state = {f"t{n}": torch.ones(n + 1) for n in range(5)}
    tensors = [*described(state).states[0].tensors.values()]
    assert [one.constant_value for one in compute_statistics_many(tensors)] == [1.0] * 5

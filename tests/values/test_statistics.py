"""Figures of streamed numbers, against torch on the whole tensor."""

import math

import pytest
import torch
from files import described
from hypothesis import given
from hypothesis import strategies as st

from ckptool.values import elements
from ckptool.values.statistics import (
    CastEffect,
    compute_statistics,
    measure_cast,
    statistics_unavailable_reason,
)
from ckptool.values.statistics_many import compute_statistics_many

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 1e-40, 3e38, 1.0, 1.0, -2.5, 0.1]


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch):
    """Reads so small that a tensor takes several, cut within an element too."""
    monkeypatch.setattr(elements, "CHUNK", 60)


def of(tensor: torch.Tensor):
    """Return the description of a tensor that torch saved, as a parameter of a file."""
    return described({"t": tensor}).states[0].tensors["t"]


@given(st.lists(st.sampled_from(SPECIAL), max_size=50), st.sampled_from(FLOATS))
def test_figures_are_what_torch_says(numbers, dtype):
    tensor = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    found = compute_statistics(of(tensor))
    finite = tensor[tensor.isfinite()].double()
    assert found.numel == tensor.numel()
    assert found.nan_count == int(tensor.isnan().sum())
    assert found.infinite_count == int(tensor.isinf().sum())
    bad = (~tensor.isfinite()).nonzero().flatten().tolist()
    assert found.first_nonfinite == (bad[0] if bad else -1)
    nonzero = finite.abs()[finite != 0]
    assert found.smallest_magnitude == (float(nonzero.min()) if nonzero.numel() else math.inf)
    assert found.denormal_count == int((nonzero < torch.finfo(dtype).tiny).sum())
    if finite.numel():
        assert (found.minimum, found.maximum) == (float(finite.min()), float(finite.max()))
    else:
        assert math.isnan(found.minimum)
        assert math.isnan(found.maximum)
    different = set(tensor[~tensor.isnan()].double().tolist())
    assert found.distinct_values == (tuple(sorted(different)) if len(different) <= 2 else None)


@given(st.lists(st.sampled_from([1.0, 0.5, 1e-30, 70000.0, 1 / 3, 2049.0]), max_size=30))
def test_which_half_precisions_hold_the_numbers(numbers):
    tensor = torch.tensor(numbers)
    held = {
        name
        for name, half in (("bfloat16", torch.bfloat16), ("float16", torch.float16))
        if torch.equal(tensor.to(half).float(), tensor)
    }
    assert compute_statistics(of(tensor)).exact_half_dtypes == held


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(30),
        torch.arange(5, dtype=torch.uint8),
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.complex64) * 2j,
        torch.linspace(0, 1, 9).to(torch.float8_e4m3fn),
        torch.arange(9).to(torch.uint16),
        torch.arange(9).to(torch.uint64),
        torch.tensor([1.0, 0.5, 4.0]).to(torch.float8_e8m0fnu),
        torch.arange(40.0).view(5, 8).T[1:3],
        torch.tensor(3.0),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_every_kind_of_number(tensor):
    found = compute_statistics(of(tensor))
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    exact = plain.double()
    assert (found.minimum, found.maximum) == (float(exact.min()), float(exact.max()))
    assert found.smallest_magnitude == float(exact.abs()[exact != 0].min())
    assert found.exact_half_dtypes == frozenset() or tensor.dtype is torch.float32


def test_what_there_are_no_figures_of():
    sparse = of(torch.eye(3).to_sparse())
    assert "sparse_coo" in statistics_unavailable_reason(sparse)
    quantised = of(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    assert statistics_unavailable_reason(quantised)
    plain = of(torch.ones(3))
    assert [
        one and one.constant_value for one in compute_statistics_many([sparse, plain, quantised])
    ] == [
        None,
        1.0,
        None,
    ]


def test_threads_of_torch_are_left_as_they_were():
    before = torch.get_num_threads()
    compute_statistics_many([of(torch.ones(3))])
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("tensor", "dtype", "expected"),
    [
        (torch.tensor([1.0, 2.5]), "int64", CastEffect(2, 1, 0, 0.2)),
        (torch.tensor([2**40, 7]), "int32", CastEffect(2, 1, 0, 1.0)),
        (torch.tensor([1e6, 1.0]), "float16", CastEffect(2, 1, 1, 0.0)),
        (torch.tensor([0.5, math.nan, math.inf]), "bfloat16", CastEffect(3, 0, 0, 0.0)),
        (torch.tensor([0, 1]), "bool", CastEffect(2, 0, 0, 0.0)),
        (torch.tensor([2, 1]), "bool", CastEffect(2, 1, 0, 0.5)),
        (torch.tensor([]), "int64", CastEffect(0, 0, 0, 0.0)),
    ],
)
def test_casts(tensor, dtype, expected):
    assert measure_cast(of(tensor), dtype) == expected


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize("dtype", ["float32", "complex64", "complex128", "bfloat16", "int64"])
def test_a_cast_of_complex_numbers_drops_what_copy_drops(dtype):
    """`load_state_dict` copies with `copy_`, which drops imaginary parts."""
    tensor = torch.tensor([1 + 0j, 2 - 1j, 0.1j, 1.0009765625 + 0j], dtype=torch.complex64)
    loaded = torch.empty(4, dtype=getattr(torch, dtype)).copy_(tensor)
    assert measure_cast(of(tensor), dtype).changed_count == int((loaded != tensor).sum())


@given(st.lists(st.floats(-70000, 70000, width=32), min_size=1), st.sampled_from(FLOATS))
def test_which_numbers_a_cast_changes(numbers, target):
    tensor = torch.tensor(numbers)
    loaded = torch.empty_like(tensor, dtype=target).copy_(tensor)
    found = measure_cast(of(tensor), str(target).removeprefix("torch."))
    assert found.changed_count == int((loaded.float() != tensor).sum())
    assert found.overflowed_count == int(loaded.isinf().sum())


def test_large_integers_are_told_apart():
    """float64, in which moments are computed, has no room for them."""
    found = compute_statistics(of(torch.tensor([2**60, 2**60 + 1])))
    assert found.distinct_values == (2**60, 2**60 + 1)
    assert found.constant_value is None


def test_casts_that_cannot_be_told():
    assert measure_cast(of(torch.ones(3)), "qint8") is None
    assert measure_cast(of(torch.eye(3).to_sparse()), "float16") is None

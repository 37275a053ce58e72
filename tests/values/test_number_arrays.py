"""Arrays of numpy, and their casts, against torch's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.values.number_arrays import (
    cast_numbers,
    compute_dot_product,
    find_smallest_normal,
    fits_dtype,
    to_comparable_reals,
    view_numbers,
    widen_numbers,
)
from ckptool.values.numbers import NUMBER_DTYPES

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore::RuntimeWarning")
FLOATS = sorted(name for name in NUMBER_DTYPES if "float" in name)
COMPLEX = sorted(name for name in NUMBER_DTYPES if "complex" in name)
WHOLE = sorted(NUMBER_DTYPES - {*FLOATS, *COMPLEX})
FLOAT_BITS = st.integers(0, 2**32 - 1)


def to_torch(name: str) -> torch.dtype:
    return getattr(torch, name)


def to_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().clone().untyped_storage())


def to_exact(tensor: torch.Tensor) -> np.ndarray:
    """Return the values as torch widens them, by way of what it can compute with."""
    if tensor.is_complex():
        return tensor.to(torch.complex128).numpy()
    return tensor.double().numpy()


def widen(numbers: np.ndarray) -> np.ndarray:
    return widen_numbers(numbers, np.empty(numbers.size))


@pytest.mark.parametrize("dtype", sorted(NUMBER_DTYPES))
def test_each_dtype_has_the_numbers_of_torch(dtype):
    """Every pattern of bits of a dtype of up to 16 bits, and random ones of the others."""
    itemsize = to_torch(dtype).itemsize
    generator = torch.Generator().manual_seed(0)
    data = (
        torch.arange(256**itemsize, dtype=torch.int32).to(
            torch.int16 if itemsize == 2 else torch.uint8
        )
        if itemsize <= 2
        else torch.randint(256, (4096 * itemsize,), dtype=torch.uint8, generator=generator)
    )
    tensor = data.view(to_torch(dtype))
    numbers = view_numbers(to_bytes(tensor), dtype)
    assert np.array_equal(widen(numbers), to_exact(tensor), equal_nan=True)
    reals = to_comparable_reals(numbers)
    components = torch.view_as_real(tensor.to(torch.complex128)) if tensor.is_complex() else tensor
    assert np.array_equal(reals, to_exact(components).ravel(), equal_nan=True)


@pytest.mark.parametrize("target", FLOATS)
@given(bits=st.lists(FLOAT_BITS, min_size=1, max_size=40), source=st.sampled_from(FLOATS))
def test_casts_between_floats_are_those_of_torch(target, bits, source):
    tensor = torch.tensor(np.array(bits, np.uint32).view(np.float32)).to(to_torch(source))
    numbers = cast_numbers(view_numbers(to_bytes(tensor), source), target)
    assert np.array_equal(widen(numbers), to_exact(tensor.to(to_torch(target))), equal_nan=True)


@pytest.mark.parametrize("target", [*FLOATS, *WHOLE])
@given(
    numbers=st.lists(st.integers(0, 120), min_size=1, max_size=40),
    source=st.sampled_from([*FLOATS, *WHOLE]),
)
def test_casts_of_whole_numbers_are_those_of_torch(target, numbers, source):
    tensor = torch.tensor(numbers).to(to_torch(source))
    cast = cast_numbers(view_numbers(to_bytes(tensor), source), target)
    assert np.array_equal(widen(cast), to_exact(tensor.to(to_torch(target))), equal_nan=True)


@pytest.mark.parametrize("target", [*FLOATS, *COMPLEX])
@pytest.mark.parametrize("source", COMPLEX)
def test_casts_of_complex_numbers_are_those_of_torch(source, target):
    tensor = torch.tensor([1 + 2j, -0.1j, 3e4, 1e-9 + 70000j, math.inf + 0j]).to(to_torch(source))
    cast = cast_numbers(view_numbers(to_bytes(tensor), source), target)
    expected = (tensor if target in COMPLEX else tensor.real).to(to_torch(target))
    assert np.array_equal(widen(cast), to_exact(expected), equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_smallest_normal_number(dtype):
    assert find_smallest_normal(dtype) == torch.finfo(to_torch(dtype)).tiny


@given(st.lists(FLOAT_BITS, min_size=1), st.sampled_from(["bfloat16", "float16"]))
def test_which_numbers_a_half_precision_holds(bits, half):
    tensor = torch.tensor(np.array(bits, np.uint32).view(np.float32))
    expected = (tensor.to(to_torch(half)).float() == tensor) | tensor.isnan()
    assert fits_dtype(tensor.numpy(), half).tolist() == expected.tolist()


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, 30000])
def test_dot_products_of_any_size(size):
    x, y = torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert compute_dot_product(x.numpy(), y.numpy()) == pytest.approx(float(x.dot(y)), rel=1e-9)
    z = torch.complex(x, y)
    real = float(z.vdot(z).real)
    assert compute_dot_product(z.numpy(), z.numpy()) == pytest.approx(real, rel=1e-9)

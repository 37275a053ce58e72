"""Outputs are compared leaf by leaf: what is equal, what is close, and how far apart it is."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptool.verification.output_diff import compare_outputs
from ckptool.verification.pytree import iter_leaves, tree_map


@dataclass
class Output:
    last: torch.Tensor
    all: tuple
    loss: float | None = None


Pair = namedtuple("Pair", "a b")  # noqa: PYI024
T = torch.tensor([1.0, 2.0])
NAN = torch.tensor([float("nan"), float("inf")])


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        (T, [""]),
        ((T, [T]), ["[0]", "[1][0]"]),
        ({"a": T, "b": (T,)}, ["['a']", "['b'][0]"]),
        (OrderedDict(x=T), ["['x']"]),
        (Pair(T, T), [".a", ".b"]),
        (Output(T, (T, T)), [".last", ".all[0]", ".all[1]", ".loss"]),
    ],
)
def test_leaves(value, paths):
    assert [path for path, _ in iter_leaves(value)] == paths
    doubled = tree_map(value, lambda tensor: tensor * 2)
    assert type(doubled) is type(value)


@pytest.mark.parametrize(
    ("actual", "expected", "exact", "close", "first"),
    [
        (T, T.clone(), True, True, ""),
        (NAN, NAN.clone(), True, True, ""),
        (T, T + 1e-6, False, True, "`output` differs in 2 of 2 elements"),
        (T, T + 1, False, False, "`output` differs in 2 of 2 elements"),
        (T, T.double(), False, False, "is torch.float32, and was torch.float64"),
        (T, T[:1], False, False, "has shape [2], and had [1]"),
        (NAN, T, False, False, "`output` differs in 2 of 2 elements"),
        (T.bfloat16(), (T + 0.01).bfloat16(), False, True, "`output` differs"),
        (T.long(), T.long() + 1, False, False, "`output` differs in 2 of 2 elements"),
        ((T, T), (T,), False, False, "the outputs have a different structure:"),
        (
            {"a": T},
            {"b": T},
            False,
            False,
            "the outputs have a different structure: `['b']`, `['a']`",
        ),
        ((T, 3), (T, 3), True, True, ""),
        ((T, 3), (T, 4), False, False, "`[1]` is 3, and was 4"),
        ((T, float("nan")), (T, float("nan")), True, True, ""),
        ((T, None), (T, T), False, False, "`[1]` has a different type"),
        (Output(T, (T,)), Output(T, (T + 1,)), False, False, "`.all[0]` differs"),
        (T.to_sparse(), T.to_sparse(), True, True, ""),
        (T + 1j, T + 1j, True, True, ""),
        (torch.empty(0), torch.empty(0), True, True, ""),
    ],
)
def test_difference(actual, expected, exact, close, first):
    found = compare_outputs(actual, expected)
    assert (found.is_exact, found.is_close) == (exact, close)
    assert first in found.first_difference
    assert bool(found.first_difference) == (not exact)


def test_the_largest_difference_over_all_leaves():
    found = compare_outputs((T, T + 0.5), (T + 0.25, T))
    assert (found.max_absolute, found.max_relative) == (0.5, 0.5)
    assert found.summary == "largest difference: 0.5 absolute, 0.5 relative"


def test_a_tolerance_of_ones_own():
    assert compare_outputs(T, T + 0.1, tolerance=0.2).is_close
    assert not compare_outputs(T, T + 1e-6, tolerance=0.0).is_close


def test_kinds_that_cannot_be_compared_are_named():
    found = compare_outputs({"a": T, "cache": object()}, {"a": T, "cache": object()})
    assert found.is_exact
    assert found.skipped_leaves == ("['cache']",)
    assert found.compared_count == 1


numbers = st.lists(st.floats(width=32), min_size=1, max_size=6)


@given(numbers)
def test_everything_equals_itself(values):
    found = compare_outputs(torch.tensor(values), torch.tensor(values))
    assert found.is_exact
    assert (found.max_absolute, found.max_relative) == (0.0, 0.0)


@given(numbers, numbers)
def test_the_absolute_difference_is_symmetric(one, other):
    a, b = torch.tensor(one), torch.tensor(other)
    there, back = compare_outputs(a, b), compare_outputs(b, a)
    assert (there.is_exact, there.max_absolute) == (back.is_exact, back.max_absolute)
    assert there.is_close or not there.is_exact

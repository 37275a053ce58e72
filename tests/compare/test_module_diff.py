import pytest
import torch
from builders import checkpoint, held, module, state, tensor, tensors
from hypothesis import given
from hypothesis import strategies as st

from ckptool.compare.changes import Changed, Missing, Unexpected, iter_changes
from ckptool.compare.module_comparison import build_module_diff
from ckptool.compare.renames import find_prefix_rewrite
from ckptool.model import Kind, contiguous_stride, natural_sort_key

W = tensor("w")
HALF = tensor("w", dtype="bfloat16")


@pytest.mark.parametrize(
    ("expected", "actual", "changes"),
    [
        (["w"], ["w"], []),
        (["w"], [], [Missing(W)]),
        ([], ["w"], [Unexpected(W)]),
        ([W], [HALF], [Changed(W, HALF, frozenset({"dtype"}))]),
    ],
)
def test_compare(expected, actual, changes):
    assert list(iter_changes(tensors(*expected), tensors(*actual), ("shape", "dtype"))) == changes


keys = st.sets(st.text("ab.", min_size=1, max_size=4), max_size=6)


@given(keys, keys)
def test_compare_is_antisymmetric(a, b):
    there = list(iter_changes(tensors(*a), tensors(*b), ("shape",)))
    back = list(iter_changes(tensors(*b), tensors(*a), ("shape",)))
    assert {c.key for c in there if isinstance(c, Missing)} == {
        c.key for c in back if isinstance(c, Unexpected)
    }


@given(keys)
def test_a_state_against_itself_has_no_changes(a):
    assert list(iter_changes(tensors(*a), tensors(*a), ("shape", "dtype", "layout"))) == []


@pytest.mark.parametrize(
    ("module_keys", "file_keys", "mapping"),
    [
        (["fc.w"], ["module.fc.w"], {"module.fc.w": "fc.w"}),
        (
            ["a.w", "a.b"],
            ["a._orig_mod.w", "a._orig_mod.b"],
            {"a._orig_mod.w": "a.w", "a._orig_mod.b": "a.b"},
        ),
        (["fc.w"], ["_orig_mod.module.fc.w"], {"_orig_mod.module.fc.w": "fc.w"}),
        (["fc.w"], ["model.fc.w"], {"model.fc.w": "fc.w"}),
        (["fc.w"], ["base_model.model.fc.w"], {"base_model.model.fc.w": "fc.w"}),
        (["module.fc.w"], ["model.module.fc.w"], {"model.module.fc.w": "module.fc.w"}),
        (["model.fc.w"], ["fc.w"], {"fc.w": "model.fc.w"}),
        (["module.fc.w"], ["fc.w"], {"fc.w": "module.fc.w"}),
    ],
)
def test_wrappers_are_found_by_whole_segments(module_keys, file_keys, mapping):
    expected, actual = tensors(*module_keys), tensors(*file_keys)
    found = find_prefix_rewrite(list(expected.values()), list(actual.values()), expected, actual)
    assert found is not None
    assert found.key_map == mapping


def test_a_rewrite_under_which_keys_collide_is_refused():
    expected, actual = tensors("fc.w"), tensors("module.fc.w", "_orig_mod.fc.w")
    assert (
        find_prefix_rewrite(list(expected.values()), list(actual.values()), expected, actual)
        is None
    )


def test_a_rewrite_never_lands_on_a_key_that_is_there():
    expected, actual = tensors("fc.w", "b"), tensors("fc.w", "module.fc.w")
    found = find_prefix_rewrite([tensor("b")], [tensor("module.fc.w")], expected, actual)
    assert found is None


def test_the_best_of_several_places_is_taken():
    ema = state("fc.w", at="ema")
    full = state("fc.w", "fc.b", at="state_dict")
    optimizer = state("state.0.exp_avg", at="optimizer", role="optimizer")
    found = build_module_diff(checkpoint(ema, optimizer, full), module("fc.w", "fc.b"), None)
    assert found.state is full
    assert found.is_strict


def test_a_worse_place_that_was_asked_for_names_the_better():
    ema = state("fc.w", at="ema")
    full = state("fc.w", "fc.b", at="state_dict")
    found = build_module_diff(checkpoint(ema, full), module("fc.w", "fc.b"), "ema")
    assert found.better_state is full


def test_coverage_counts_elements_of_parameters_that_would_load():
    big, small = held(tensor("big", (9, 10))), held(tensor("small", (10,)))
    mask = held(tensor("mask", (50, 50)), Kind.BUFFER)
    found = build_module_diff(checkpoint(state(big.tensor)), module(big, small, mask), None)
    assert found.coverage == 0.9


def test_a_module_without_parameters_is_covered():
    assert build_module_diff(checkpoint(state()), module(), None).coverage == 1.0


def test_natural_order_puts_layer_2_before_layer_10():
    assert sorted(["l.10.w", "l.2.w", "l.1.w", "a"], key=natural_sort_key) == [
        "a",
        "l.1.w",
        "l.2.w",
        "l.10.w",
    ]


@given(st.lists(st.text(max_size=6)))
def test_natural_order_is_total(texts):
    turned = texts[::-1]
    turned.sort(key=natural_sort_key)
    assert sorted(texts, key=natural_sort_key) == turned


@given(st.lists(st.integers(0, 4), max_size=5))
def test_contiguous_strides_are_those_of_torch(shape):
    assert contiguous_stride(tuple(shape)) == torch.empty(shape).stride()

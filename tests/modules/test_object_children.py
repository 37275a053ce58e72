"""Tensors in containers: each is found once, under a path that leads to it."""

from collections import OrderedDict, deque

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modules import modules_for_tests
from modules.modules_for_tests import examined
from paths import examples
from torch import nn

from ckptool.model import Kind
from ckptool.modules import describe_module
from ckptool.modules.walk import walk_module


def test_every_container():
    state = examined(modules_for_tests.Containers)
    kinds = {key: str(held.kind) for key, held in state.unsaved_tensors.items()}
    assert kinds == {
        "act.keywords['by']": "container",
        "bag[0]": "container",
        "data.mean": "container",
        "data.more[0]": "container",
        "deep[0][0][0][0]": "container",
        "keys[#2]": "container",
        "keys[('a', 1)]": "container",
        "keys[3]": "container",
        "layer.func.weight": "module",
        "line[0]": "container",
        "pair[0]": "container",
        "space.table": "container",
        "stats.mean": "array",
        "stats.var": "container",
    }
    assert state.hidden_modules == {"layer.func": "torch.nn.modules.linear.Linear"}
    assert [(s.what, s.reason) for s in state.skipped if s.what.startswith("deeper")] == [
        ("deeper[0][0][0][0]", "containers more than 4 deep are not searched")
    ]


def test_an_object_that_contains_itself_ends():
    module = nn.Module()
    module.loop = [torch.ones(1)]
    module.loop.append(module.loop)
    assert list(describe_module(module, "live").tensors) == ["loop[0]"]


def test_hidden_modules_inside_hidden_modules():
    inner, outer = nn.Module(), nn.Module()
    inner.register_buffer("b", torch.ones(1))
    outer.tree = nn.Sequential(nn.Linear(1, 1, bias=False))
    outer.more = [inner]
    outer.loose = torch.ones(2)
    root = nn.Module()
    root.kept = [outer, outer]
    state = describe_module(root, "live")
    assert {k: h.kind for k, h in state.tensors.items()} == dict.fromkeys(
        ["kept[0].loose", "kept[0].more[0].b", "kept[0].tree.0.weight"], Kind.MODULE
    )
    assert list(state.hidden_modules) == ["kept[0]", "kept[0].more[0]"]


leaves = st.one_of(
    st.just("tensor"),
    st.just("array"),
    st.just("parameter"),
    st.none(),
    st.integers(),
    st.text(max_size=3),
)
keys = st.one_of(st.text(max_size=3), st.integers(-2, 99), st.tuples(st.integers(0, 3)))


def containers(depth):
    if depth == 0:
        return leaves
    inner = containers(depth - 1)
    return st.one_of(
        leaves,
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(deque),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
    )


def planted(plan, made):
    """Put a new tensor, array or parameter in each place that the plan names, and note them."""
    match plan:
        case "tensor" | "array" | "parameter":
            ones = torch.ones(1)
            made.append({"tensor": ones, "array": np.ones(1)}.get(plan, nn.Parameter(ones)))
            return made[-1]
        case list() | tuple() | deque():
            return type(plan)(planted(one, made) for one in plan)
        case dict():
            return type(plan)((key, planted(one, made)) for key, one in plan.items())
    return plan


@settings(deadline=None, max_examples=examples(150))
@given(containers(3))
def test_each_tensor_is_found_once_and_its_path_leads_to_it(plan):
    module, made = nn.Linear(1, 1), []
    module.held = [planted(plan, made)]
    found = [f for f in walk_module(module).tensors if not f.is_registered]
    assert sorted(id(f.value) for f in found) == sorted(map(id, made))
    for one in found:
        assert eval(f"module.{one.path}", {"module": module}) is one.value


trees = st.recursive(
    st.sampled_from(["parameter", "buffer", "lost", "attribute"]),
    lambda inner: st.dictionaries(st.sampled_from("abcdefgh"), inner, max_size=4),
    max_leaves=12,
)


def grown(plan):
    module = nn.Module()
    for name, part in plan.items():
        if isinstance(part, dict):
            module.add_module(name, grown(part))
        elif part == "parameter":
            module.register_parameter(name, nn.Parameter(torch.ones(1)))
        elif part == "attribute":
            setattr(module, name, torch.ones(1))
        else:
            module.register_buffer(name, torch.ones(1), persistent=part == "buffer")
    return module


@settings(deadline=None, max_examples=examples(100))
@given(st.dictionaries(st.sampled_from("abcdefgh"), trees, max_size=4))
def test_saved_keys_are_those_of_state_dict_in_its_order(plan):
    module = grown(plan)
    state = describe_module(module, "live")
    assert list(state.saved_tensors) == list(module.state_dict())
    lost = {f.path for f in walk_module(module).tensors} - set(module.state_dict())
    assert set(state.unsaved_tensors) == lost
    assert state.tensors == describe_module(module, "live").tensors


def test_an_attribute_that_a_class_refuses_is_passed_over():
    """Transformers' configurations of unlike layers raise for what may differ between them."""

    class Config:
        def __init__(self):
            self.head_dim, self.scale = 8, torch.ones(2)

        def __getattribute__(self, name):
            if name == "head_dim":
                raise ValueError("head_dim may vary across layers")
            return super().__getattribute__(name)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = Config()

    paths = [found.path for found in walk_module(Net()).tensors]
    assert paths == ["config.scale"]

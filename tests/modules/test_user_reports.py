"""What users lose (field-notes.md): each pain is seen, and named for what it is."""

import pytest
import torch
from modules import modules_for_tests
from modules.marked_lines import marked
from modules.modules_for_tests import examined

from ckptool.errors import ModuleError
from ckptool.model import Constancy, Kind
from ckptool.modules import describe_module


def facets(state):
    """Return what each unsaved tensor is, how constant, and whether it follows .to()."""
    return {
        k: (str(h.kind), str(h.constancy), h.follows_to) for k, h in state.unsaved_tensors.items()
    }


def test_s01_a_plain_mask():
    state = examined(modules_for_tests.AttrMask)
    assert facets(state) == {"mask": ("attribute", "constant", False)}
    assert state.tensors["mask"].assigned_at == marked("AttrMask.mask")
    assert facets(examined(modules_for_tests.BufMask)) == {}


def test_s02_drawn_in_the_constructor():
    assert facets(examined(modules_for_tests.RandomModes)) == {
        "B": ("attribute", "random", False),
        "C": ("array", "random", False),
        "perm": ("attribute", "random", False),
    }


def test_s03_a_queue_is_a_statistic():
    state = examined(modules_for_tests.Queue)
    assert state.tensors["queue"].is_statistic
    assert state.tensors["queue"].written_at == marked("Queue.queue written")
    assert not state.tensors["table"].is_statistic


def test_s04_layers_in_a_list():
    state = examined(modules_for_tests.ListLayers)
    assert list(state.saved_tensors) == ["head.weight", "head.bias"]
    weights = {
        f"convs[{i}].{name}": ("module", "random", False)
        for i in range(3)
        for name in ("bias", "weight")
    }
    assert facets(state) == {
        "banks['k']": ("container", "random", False),
        **weights,
        "scales[0]": ("parameter", "constant", False),
    }
    assert state.hidden_modules == {
        f"convs[{i}]": "torch.nn.modules.linear.Linear" for i in range(3)
    }
    conv = state.tensors["convs[1].weight"]
    assert conv.owner == "modules.modules_for_tests.ListLayers"
    assert (conv.assigned_at, conv.used_at) == (
        marked("ListLayers.convs"),
        marked("ListLayers.convs used"),
    )


def test_s05_not_persistent_and_not_recomputable():
    state = examined(modules_for_tests.NonPersist)
    assert facets(state) == {
        "drop_mask": ("non-persistent-buffer", "random", True),
        "steps": ("non-persistent-buffer", "constant", True),
    }


def test_s06_statistics_as_arrays():
    state = examined(modules_for_tests.Norm)
    assert facets(state) == {
        "mean": ("array", "constant", False),
        "std": ("array", "constant", False),
    }
    std = state.tensors["std"].tensor
    assert (std.dtype, std.shape, std.stride, std.nbytes) == ("float32", (2, 3), (3, 1), 24)
    assert not state.tensors["mean"].follows_dtype


def test_s07_an_attribute_that_half_passes_by():
    state = examined(modules_for_tests.CastMiss)
    assert {key: held.follows_dtype for key, held in state.unsaved_tensors.items()} == {
        "index": True,
        "norm_factor": False,
    }


def test_b08_a_buffer_that_is_none():
    state = examined(modules_for_tests.Lazy)
    assert state.none_buffers == {"scale": "modules.modules_for_tests.Lazy"}
    assert state.tensors == {}


def test_b09_aliases_that_go_stale():
    state = examined(modules_for_tests.StaleAlias)
    assert list(state.saved_tensors) == ["radius"]
    stale = {key: (h.alias_of, h.follows_to) for key, h in state.unsaved_tensors.items()}
    assert stale == {"all[0]": ("radius", False), "init_value": ("radius", False)}
    assert state.tensors["init_value"].tensor.storage == state.tensors["radius"].tensor.storage


def test_b09_registering_twice_is_the_users_error():
    with pytest.raises(ModuleError, match="attribute 'mask' already exists"):
        examined(modules_for_tests.Twice)


def test_an_alias_that_follows_is_no_finding():
    assert facets(examined(modules_for_tests.FollowedAlias)) == {}
    assert facets(describe_module(modules_for_tests.FollowedAlias(), "live")) == {}


@pytest.mark.parametrize("live", [False, True])
def test_a_view_of_a_parameter_goes_stale(live):
    state = (
        describe_module(modules_for_tests.StaleView(), "live")
        if live
        else examined(modules_for_tests.StaleView)
    )
    assert {k: (h.alias_of, h.follows_to) for k, h in state.unsaved_tensors.items()} == {
        "row": ("w", False)
    }


def test_g01_a_metric_saves_its_attributes():
    state = examined(modules_for_tests.Metric)
    assert list(state.saved_tensors) == ["total"]
    assert state.tensors["total"].kind is Kind.ATTRIBUTE
    assert state.unsaved_tensors == {}
    assert state.non_tensors == {"seen": "list of 2"}


def test_an_attribute_moved_by_hand_follows():
    state = examined(modules_for_tests.OwnApply)
    assert {k: (h.follows_to, h.follows_dtype) for k, h in state.unsaved_tensors.items()} == {
        "cache": (True, True),
        "mask": (True, True),
    }


def test_e01_a_non_persistent_buffer_built_on_meta_has_no_value():
    with torch.device("meta"):
        module = modules_for_tests.NonPersist()
    held = describe_module(module, "live").tensors["steps"]
    assert (held.fingerprint, held.constancy) == ("", Constancy.UNKNOWN)
    assert held.tensor.device == "meta"


def test_e02_e03_dtypes_are_those_that_a_load_casts_to():
    module = modules_for_tests.Queue().half()
    assert describe_module(module, "live").tensors["queue"].tensor.dtype == "float16"


def test_e04_ties_are_seen():
    state = examined(modules_for_tests.Tied)
    storages = {key: held.tensor.storage for key, held in state.saved_tensors.items()}
    assert storages["embed.weight"] == storages["head.weight"]
    assert storages["one"] == storages["two"] != storages["embed.weight"]
    assert storages["low"] == storages["high"]
    assert state.tensors["high"].tensor.storage_offset == 3

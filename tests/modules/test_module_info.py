"""state_dict() decides what is saved; everything else that a module holds is found beside it."""

import numpy as np
import pytest
import torch
from modules import modules_for_tests
from modules.modules_for_tests import examined
from torch import nn

from ckptool.errors import ModuleError
from ckptool.model import Constancy, Kind, ModuleClass, tied_keys
from ckptool.modules import describe_module
from ckptool.values.fingerprint import fingerprint_chunks


def test_a_parameter_that_state_dict_drops_is_unsaved():
    state = examined(modules_for_tests.Dropping)
    assert list(state.saved_tensors) == ["kept.weight"]
    assert [(k, h.kind, h.alias_of) for k, h in state.unsaved_tensors.items()] == [
        ("frozen.weight", Kind.PARAMETER, "")
    ]


def test_a_renamed_key_is_the_one_that_is_saved():
    state = examined(modules_for_tests.Renaming)
    assert [(k, h.kind, h.is_saved) for k, h in state.tensors.items()] == [
        ("weight", Kind.PARAMETER, True)
    ]


def test_a_tie_that_is_saved_once():
    class Once(modules_for_tests.Tied):
        def state_dict(self, *args, **kwargs):
            state = super().state_dict(*args, **kwargs)
            del state["head.weight"]
            return state

    state = describe_module(Once(), "live")
    assert {k: h.alias_of for k, h in state.unsaved_tensors.items()} == {
        "head.weight": "embed.weight"
    }


def test_ties_are_groups_of_keys():
    held = examined(modules_for_tests.Tied).saved_tensors.values()
    assert tied_keys(h.tensor for h in held) == (("one", "two"), ("embed.weight", "head.weight"))


def test_a_shared_sub_module_is_listed_under_both_names_as_in_state_dict():
    state = examined(modules_for_tests.SharedLayer)
    assert list(state.tensors) == [
        *("a.fc.weight", "a.fc.bias", "b.fc.weight", "b.fc.bias"),
        *("a.mask", "b.mask"),
    ]


def test_extra_state_is_told_in_words():
    state = examined(modules_for_tests.ExtraState)
    assert state.non_tensors == {"_extra_state": "dict of 2"}


def test_an_extra_state_that_is_a_tensor_is_saved():
    class Tensors(modules_for_tests.ExtraState):
        def get_extra_state(self):
            return torch.ones(3)

    extra = describe_module(Tensors(), "live").tensors["_extra_state"]
    assert (extra.is_saved, extra.kind, extra.tensor.shape) == (True, Kind.ATTRIBUTE, (3,))


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (None, "live: its state_dict() raised RuntimeError: gather first and then"),
        ([1], "live: its state_dict() returned a list, not a mapping"),
    ],
)
def test_a_state_dict_that_fails(result, reason):
    with pytest.raises(ModuleError) as caught:
        describe_module(modules_for_tests.BadState(result), "live")
    assert str(caught.value).partition(" (at ")[0] == reason


def test_unsaved_keys_are_in_natural_order():
    module = nn.Module()
    module.t = [torch.ones(1) for _ in range(11)]
    assert list(describe_module(module, "live").tensors) == [f"t[{i}]" for i in range(11)]


def test_two_runs_describe_the_same():
    assert examined(modules_for_tests.Tied) == examined(modules_for_tests.Tied)
    assert examined(modules_for_tests.ListLayers) == examined(modules_for_tests.ListLayers)


def test_a_class_attribute():
    state = examined(modules_for_tests.ClassTable)
    kinds = {key: (held.kind, held.constancy) for key, held in state.tensors.items()}
    assert kinds == {
        "shadowed": (Kind.ATTRIBUTE, Constancy.CONSTANT),
        "table": (Kind.CLASS_ATTRIBUTE, Constancy.UNKNOWN),
    }
    table = state.tensors["table"]
    assert not table.follows_to
    assert table.assigned_at == zoo_place("ClassTable.table")


def zoo_place(name):
    from modules.marked_lines import marked

    return marked(name)


def test_what_was_made_outside_the_constructor_is_not_called_constant():
    state = examined(modules_for_tests.FromOutside)
    assert state.tensors["table"].constancy is Constancy.UNKNOWN
    assert (
        modules_for_tests.GLOBAL_BACKBONE.weight.dtype
        == modules_for_tests.GLOBAL_WEIGHT.dtype
        == torch.float32
    )
    assert not any(
        p.is_meta
        for p in (*modules_for_tests.GLOBAL_BACKBONE.parameters(), modules_for_tests.GLOBAL_WEIGHT)
    )


def test_a_child_that_holds_its_parent_is_no_hidden_module():
    state = examined(modules_for_tests.Parent)
    assert list(state.tensors) == ["child.weight", "child.bias"]
    assert state.hidden_modules == {}


def test_dtypes_and_layouts():
    held = examined(modules_for_tests.OddDtypes).tensors
    assert {key: (h.tensor.dtype, h.tensor.layout) for key, h in held.items()} == {
        "bf16": ("bfloat16", "strided"),
        "big": ("float32", "strided"),
        "complex": ("complex64", "strided"),
        "fp8": ("float8_e4m3fn", "strided"),
        "fp16": ("float16", "strided"),
        "nan": ("float32", "strided"),
        "nothing": ("float32", "strided"),
        "objects": ("object", "strided"),
        "quantized": ("qint8", "quantized"),
        "sparse": ("float32", "sparse_coo"),
        "view": ("float32", "strided"),
        "words": ("str64", "strided"),
    }
    assert {k for k, h in held.items() if h.constancy is not Constancy.CONSTANT} == {"objects"}
    assert {k for k, h in held.items() if not h.fingerprint} == {"objects", "sparse", "words"}
    assert not any(h.follows_to for h in held.values())
    assert sum(h.tensor.nbytes for h in held.values()) > 0


def test_fingerprints_are_of_the_elements_in_order():
    held = examined(modules_for_tests.OddDtypes).tensors
    view = torch.arange(6.0).reshape(2, 3).t().contiguous()
    floats = np.array([1.0, 2.0], dtype="<f4")
    assert held["view"].fingerprint == fingerprint_chunks(
        "float32", (3, 2), [view.numpy().tobytes()]
    )
    assert held["big"].fingerprint == fingerprint_chunks("float32", (2,), [floats.tobytes()])
    assert held["bf16"].fingerprint == fingerprint_chunks("bfloat16", (2,), [b"\xc0\x3f\xc0\x3f"])
    assert held["nothing"].fingerprint == fingerprint_chunks("float32", (0,), [])
    assert held["complex"].fingerprint == fingerprint_chunks(
        "complex64", (1,), [np.array([1 - 2j], dtype=np.complex64).tobytes()]
    )


def test_a_sparse_tensor_has_parts():
    sparse = examined(modules_for_tests.OddDtypes).tensors["sparse"].tensor
    parts = {part.name: (part.tensor.shape, part.tensor.dtype) for part in sparse.parts}
    assert parts == {"indices": ((2, 2), "int64"), "values": ((2,), "float32")}
    assert (sparse.storage, sparse.nbytes) == (None, 40)


def test_a_wrapper_subclass_is_named_and_taken_apart():
    from torch.testing._internal.two_tensor import TwoTensor

    module = nn.Module()
    module.two = TwoTensor(torch.ones(2), torch.zeros(2))
    two = describe_module(module, "live").tensors["two"].tensor
    assert two.wrapper == "torch.testing._internal.two_tensor.TwoTensor"
    assert [part.name for part in two.parts] == ["a", "b"]
    assert (two.shape, two.nbytes) == ((2,), 16)


def test_a_lazy_parameter_has_no_shape_yet():
    weight = describe_module(nn.LazyLinear(2), "live").tensors["weight"]
    assert (weight.tensor.layout, weight.tensor.shape, weight.is_saved) == ("lazy", (0,), True)


def test_what_is_known_of_classes():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(1)
            self.loss = nn.CrossEntropyLoss()
            self.own = modules_for_tests.OwnLoad()
            self.hooked = modules_for_tests.HookedLoad()
            self.lazy = nn.LazyLinear(1)

    modules = describe_module(Root(), "live").modules
    assert {
        prefix: (c.version, c.has_custom_load, c.is_auxiliary) for prefix, c in modules.items()
    } == {
        "": (1, False, False),
        "norm": (2, False, False),
        "loss": (1, False, True),
        "own": (3, True, False),
        "hooked": (1, True, False),
        "lazy": (1, False, False),
    }
    assert {"weight", "running_mean", "eps", "training"} <= modules["norm"].attributes
    own_name = "modules.modules_for_tests.OwnLoad"
    assert modules["own"] == ModuleClass(
        own_name, 3, True, False, modules["own"].attributes, loading_class=own_name
    )
    assert modules["norm"].loading_class == "torch.nn.modules.batchnorm._NormBase"
    assert modules["loss"].loading_class == "torch.nn.modules.module.Module"


def test_batch_norm_keeps_statistics():
    state = describe_module(nn.Sequential(nn.BatchNorm1d(2), nn.InstanceNorm1d(2)), "live")
    assert [k for k, h in state.tensors.items() if h.is_statistic] == [
        f"0.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    ]
    assert "batchnorm.py:" in state.tensors["0.num_batches_tracked"].written_at
    assert {key.partition(".")[0] for key in state.none_buffers} == {"1"}


def accuracy(*persistent):
    """Return what torchmetrics, which need not be installed, makes of a metric's states."""

    def state_dict(self, *args, **kwargs):
        return {name: getattr(self, name) for name in persistent}

    base = type("Metric", (nn.Module,), {"__module__": "torchmetrics.metric"})
    mine = type("Accuracy", (base,), {"__module__": "mine", "state_dict": state_dict})()
    mine._defaults = {"right": torch.zeros(1), "seen": torch.zeros(1)}
    mine._persistent = {name: name in persistent for name in mine._defaults}
    mine.right, mine.seen = torch.zeros(1), torch.zeros(1)
    return mine


def test_a_metric_is_auxiliary():
    assert describe_module(accuracy(), "live").modules[""].is_auxiliary


def test_the_states_of_a_metric_are_buffers_in_all_but_name():
    held = describe_module(accuracy("right"), "live").tensors
    assert {key: (one.kind, one.is_saved) for key, one in held.items()} == {
        "right": (Kind.BUFFER, True),
        "seen": (Kind.NON_PERSISTENT_BUFFER, False),
    }

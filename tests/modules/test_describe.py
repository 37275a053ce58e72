"""A live instance is described as it is, and left as it is."""

import pytest
import torch
from modules import modules_for_tests
from modules.marked_lines import marked
from torch import nn

import ckptool
from ckptool.model import CONSTANCY_CHECK, Constancy
from ckptool.modules import describe_module


def test_an_instance_cannot_be_built_again():
    state = describe_module(modules_for_tests.AttrMask(), "net")
    mask = state.tensors["mask"]
    assert (state.target, mask.constancy) == ("net", Constancy.UNKNOWN)
    assert not mask.follows_to
    assert (mask.assigned_at, mask.tensor.device) == (marked("AttrMask.mask"), "cpu")
    assert [skipped.what for skipped in state.skipped] == [CONSTANCY_CHECK]
    assert state.tensors["fc.weight"].fingerprint


@pytest.mark.parametrize(
    "make",
    [
        modules_for_tests.AttrMask,
        modules_for_tests.Tied,
        modules_for_tests.ListLayers,
        modules_for_tests.StaleAlias,
    ],
)
def test_the_instance_is_left_as_it_is(make):
    module = make()
    before = {k: (id(v), v.device, v.dtype, v.clone()) for k, v in vars_of(module)}
    describe_module(module, "net")
    after = {k: (id(v), v.device, v.dtype, v) for k, v in vars_of(module)}
    assert {k: v[:3] for k, v in after.items()} == {k: v[:3] for k, v in before.items()}
    assert all(torch.equal(after[k][3], before[k][3]) for k in before)


def vars_of(module):
    from ckptool.modules.walk import walk_module

    return [(found.path, found.value) for found in walk_module(module).tensors]


def test_what_a_module_in_use_holds_is_described():
    module = modules_for_tests.AttrMask()
    module.mask *= 2
    module.late = torch.ones(1)
    held = describe_module(module, "net").tensors
    assert (
        held["mask"].fingerprint
        != describe_module(modules_for_tests.AttrMask(), "net").tensors["mask"].fingerprint
    )
    assert held["late"].assigned_at == ""


def test_results_of_a_computation_can_be_held():
    state = describe_module(modules_for_tests.NonLeaf(), "net")
    assert {key: h.follows_to for key, h in state.unsaved_tensors.items()} == {
        "parts[0]": False,
        "twice": False,
    }
    assert [skipped.what for skipped in state.skipped] == [CONSTANCY_CHECK]


def test_what_cannot_be_copied_is_not_moved():
    class Uncopyable(modules_for_tests.Uncopyable):
        def __deepcopy__(self, memo):
            raise TypeError("a handle of a device")

    state = describe_module(Uncopyable(), "net")
    assert [skipped.what for skipped in state.skipped] == [
        CONSTANCY_CHECK,
        "what follows .to() and .half()",
    ]
    assert "a handle of a device" in state.skipped[1].reason
    assert not state.tensors["mask"].follows_to


def test_what_cannot_be_copied_in_a_module_is_the_same_object_in_its_copy():
    state = describe_module(modules_for_tests.Uncopyable(), "net")
    assert [skipped.what for skipped in state.skipped] == [CONSTANCY_CHECK]
    assert not state.tensors["mask"].follows_to


def test_a_list_with_a_tensor_and_what_cannot_be_copied_is_not_changed_by_a_trial(tmp_path):
    class Bank(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.bank = [torch.ones(2), (i for i in ())]

        def _load_from_state_dict(self, *args):
            self.bank[0].zero_()
            super()._load_from_state_dict(*args)

    module = Bank()
    torch.save(module.state_dict(), tmp_path / "bank.pth")
    report = ckptool.diff(tmp_path / "bank.pth", module=module)
    assert torch.equal(module.bank[0], torch.ones(2))
    assert not report.is_coverage_known


def test_moving_that_fails_is_told():
    class Stuck(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("b", torch.ones(1))
            self.mask = torch.ones(1)

        def to(self, *args, **kwargs):
            raise NotImplementedError("use accelerate")

    state = describe_module(Stuck(), "net")
    assert [skipped.what for skipped in state.skipped] == [CONSTANCY_CHECK, "what follows .to()"]
    assert "NotImplementedError: use accelerate" in state.skipped[1].reason
    assert {key: (h.follows_to, h.follows_dtype) for key, h in state.tensors.items()} == {
        "b": (True, True),
        "mask": (False, False),
    }


def test_a_buffer_that_its_module_keeps_on_the_cpu():
    class Pinned(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(1))

        def _apply(self, fn, recurse=True):
            return self

    held = describe_module(Pinned(), "net").tensors["table"]
    assert (held.is_saved, held.follows_to, held.follows_dtype) == (True, False, False)


def test_a_module_already_in_half_precision():
    module = modules_for_tests.CastMiss().half()
    module.norm_factor = module.norm_factor.half()
    held = describe_module(module, "net").tensors
    assert (held["fc.weight"].follows_dtype, held["norm_factor"].follows_dtype) == (True, False)

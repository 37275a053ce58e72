"""torch's own modules: what is not lost is not reported."""

import pytest
from modules.modules_for_tests import examined
from modules.torch_modules import CLASSES, FACTORIES, instance, old_weight_norm, recurrent

from ckptool.model import CONSTANCY_CHECK
from ckptool.modules import describe_module

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_stock_module_loses_nothing(cls):
    module = instance(cls)
    state = describe_module(module, "stock")
    assert list(state.saved_tensors) == list(module.state_dict())
    assert (state.unsaved_tensors, state.hidden_modules, state.non_tensors) == ({}, {}, {})
    assert all(held.follows_to and held.follows_dtype for held in state.tensors.values())
    assert [skipped.what for skipped in state.skipped] == [CONSTANCY_CHECK]


@pytest.mark.parametrize("make", FACTORIES, ids=lambda make: make.__name__)
def test_what_torch_builds_around_modules_loses_nothing(make):
    state = examined(make)
    assert (state.unsaved_tensors, state.hidden_modules) == ({}, {})
    assert sorted([*state.saved_tensors, *state.non_tensors]) == sorted(make().state_dict())
    live = describe_module(make(), "live")
    assert (live.unsaved_tensors, live.hidden_modules) == ({}, {})


def test_lstm_weights_need_no_real_build():
    assert examined(recurrent).skipped == ()


def test_an_old_weight_norm_has_only_what_it_learns():
    assert list(examined(old_weight_norm).tensors) == ["bias", "weight_g", "weight_v"]

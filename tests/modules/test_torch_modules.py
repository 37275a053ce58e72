"""torch's own modules: what is not lost is not reported."""

import pytest
import torch
from modules.modules_for_tests import examined
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, prune

from ckptool.modules import describe_module

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

ARGUMENTS = [(), (4,), (4, 4), (2, 4), (4, 4, 2), (1, 1, 1), (4, 4, 4), (4, 10, [2])]
CANNOT_STAND_ALONE = {
    *("RNNBase", "RNNCellBase", "TransformerDecoder", "TransformerEncoder", "Unflatten"),
}
CLASSES = [
    value
    for name, value in sorted(vars(nn).items())
    if isinstance(value, type)
    and issubclass(value, nn.Module)
    and name not in {*CANNOT_STAND_ALONE, "Transformer", "DataParallel"}
]


def instance(cls):
    """Return `cls` with the first arguments that it takes."""
    for arguments in ARGUMENTS:
        try:
            return cls(*arguments)
        except (TypeError, ValueError, AssertionError, RuntimeError):
            continue
    raise AssertionError(cls)


def pruned():
    linear = nn.Linear(2, 2)
    prune.l1_unstructured(linear, "weight", 0.5)
    return linear


def attention():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2)


def transformer():
    return nn.Transformer(4, 2, 1, 1, 8)


def old_weight_norm():
    return nn.utils.weight_norm(nn.Linear(2, 2))


def old_spectral_norm():
    return nn.utils.spectral_norm(nn.Linear(2, 2))


def weight_norm():
    return parametrizations.weight_norm(nn.Linear(2, 2))


def spectral_norm():
    return parametrizations.spectral_norm(nn.Linear(2, 2))


def orthogonal():
    return parametrizations.orthogonal(nn.Linear(2, 2))


def weighted_loss():
    return nn.CrossEntropyLoss(torch.ones(2))


def same_padding():
    return nn.Conv2d(1, 1, 3, padding="same")


def recurrent():
    return nn.ModuleList([nn.LSTM(2, 2, 2, bidirectional=True), nn.GRU(2, 2), nn.RNN(2, 2)])


def data_parallel():
    return nn.DataParallel(nn.BatchNorm1d(2))


def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LSTM(2, 2)))


def traced():
    return torch.jit.trace(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.ones(2, 2))


def compiled():
    return torch.compile(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def symbolic():
    return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def observed():
    return nn.ModuleList(
        [
            quantization.MinMaxObserver(),
            quantization.MovingAverageMinMaxObserver(),
            quantization.PerChannelMinMaxObserver(),
            quantization.HistogramObserver(),
            quantization.FakeQuantize(),
            quantization.FusedMovingAvgObsFakeQuantize(),
        ]
    )


def quantized():
    return torch.ao.nn.quantized.Linear(2, 2)


FACTORIES = [
    *(transformer, attention, old_weight_norm, old_spectral_norm, weight_norm, spectral_norm),
    *(orthogonal, pruned, weighted_loss, same_padding, recurrent, data_parallel, scripted, traced),
    *(compiled, symbolic, observed, quantized),
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_stock_module_loses_nothing(cls):
    module = instance(cls)
    state = describe_module(module, "stock")
    assert list(state.saved_tensors) == list(module.state_dict())
    assert (state.unsaved_tensors, state.hidden_modules, state.non_tensors) == ({}, {}, {})
    assert all(held.follows_to and held.follows_dtype for held in state.tensors.values())
    assert [skipped.what for skipped in state.skipped] == ["constancy"]


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

"""torch's own modules, one of each class, and what torch builds around modules."""

import torch
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, prune

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

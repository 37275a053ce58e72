"""Tensors that a user's code sets on instances of torch's own classes: no file has them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import ckptool
from ckptool.modules.walk import is_set_from_outside


def build_sequential():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    module.mask = torch.tril(torch.ones(4, 4))
    return module


def build_layer_in_list():
    module = nn.ModuleList([nn.Linear(4, 4)])
    module[0].gain = torch.ones(4)
    return module


def build_transformer():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    module = nn.TransformerEncoder(layer, 2)
    module.mask = torch.tril(torch.ones(4, 4))  # a word of the code of its class
    return module


def build_recurrent():
    module = nn.LSTM(4, 4)
    module.first_state = torch.zeros(1, 4)
    return module


def build_parametrized():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    module.scale = torch.ones(1)
    return module


BUILT = {
    build_sequential: "mask",
    build_layer_in_list: "0.gain",
    build_transformer: "mask",
    build_recurrent: "first_state",
    build_parametrized: "scale",
}


def get_tensor(module, key):
    path, _, name = key.rpartition(".")
    return getattr(module.get_submodule(path), name)


@pytest.mark.parametrize(
    ("build", "key"), BUILT.items(), ids=lambda value: getattr(value, "__name__", value)
)
def test_it_is_reported(build, key, tmp_path):
    module, path = build(), tmp_path / "model.pth"
    torch.save(module.state_dict(), path)
    # What torch says: it is not saved, a load does not restore it, and .to() leaves it alone.
    assert key not in torch.load(path)
    other = copy.deepcopy(module)
    get_tensor(other, key).fill_(7)
    other.load_state_dict(torch.load(path))
    assert (get_tensor(other, key) == 7).all()
    assert get_tensor(copy.deepcopy(module).half(), key).dtype is torch.float32

    compared = ckptool.diff(path, module=module, fresh=build)
    assert (key, "CK101") in {(f.key, f.code) for f in compared.findings}
    (finding,) = (f for f in compared.findings if f.code == "CK101")
    assert "code outside the constructor modifies it" not in finding.message
    assert "self." not in finding.fix
    live = ckptool.diff(module, path)
    assert f"`{key}` (not in the state_dict)" in str([s.reason for s in live.skipped])
    assert key in str(ckptool.diff(module, other))

    with ckptool.watch(module) as watched:
        get_tensor(module, key).add_(1)
    assert key in {finding.key for finding in watched.report.findings}
    with ckptool.watch(module) as watched:
        module(torch.ones(1, 3, 4)) if not isinstance(module, nn.ModuleList) else None
    assert not watched.report.findings


STOCK = [
    nn.LSTM(4, 4, 2, bidirectional=True),
    nn.GRU(4, 4),
    nn.MultiheadAttention(4, 2),
    nn.TransformerDecoderLayer(4, 2, 8),
    nn.BatchNorm1d(4),
    nn.utils.spectral_norm(nn.Linear(4, 4)),
    prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
    nn.Bilinear(2, 2, 2),
    nn.EmbeddingBag(4, 4),
    nn.CrossEntropyLoss(weight=torch.ones(4)),
    nn.AdaptiveLogSoftmaxWithLoss(16, 8, [2, 4], div_value=2.0),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("module", STOCK, ids=lambda module: type(module).__name__)
def test_what_torch_sets_itself_is_not_called_so(module):
    assert not [
        (prefix, name)
        for prefix, member in module.named_modules()
        for name in vars(member)
        if name not in vars(nn.Module())
        and is_set_from_outside(member, name)
        and isinstance(vars(member)[name], torch.Tensor | list)
    ]

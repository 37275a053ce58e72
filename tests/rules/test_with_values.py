"""No false alarms: the cases of all other rules, and fresh models, once more with values."""

from functools import partial

import modules_for_tests
import pytest
import torch
from rules.cases import CASES
from torch import nn

from ckptool import api

TRUE_BESIDES = {"observer_resets_eps": {"CK213"}}
"""The observer of the file has another `eps` than the module's arguments say."""
BY_VALUE = {"CK213", "CK401", "CK402", "CK403", "CK404", "CK405"}


OTHERS = [case for case in CASES if not case.make.__module__.endswith("cases_values")]


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_cases_of_other_rules_stay_as_they_are(case, tmp_path, monkeypatch):
    """Looking at values adds nothing, and takes nothing away but a cast that loses nothing."""
    diff = api.diff
    monkeypatch.setattr(api, "inspect", partial(api.inspect, values=True))
    monkeypatch.setattr(api, "diff", lambda *a, **k: diff(*a, **({"values": True} | k)))
    found = {finding.code for finding in case.make(tmp_path).findings}
    assert found == case.expected | TRUE_BESIDES.get(case.make.__name__, set())


class Block(nn.Module):
    """A GPT-2-like block: a causal mask as a buffer, and one of -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(8, 24)
        self.register_buffer("bias", torch.tril(torch.ones(6, 6, dtype=torch.bool)))
        self.register_buffer("masked_bias", torch.tensor(-1e4))
        self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1))
        self.norm = nn.LayerNorm(8)


def residual() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(8), nn.InstanceNorm2d(8, track_running_stats=True))


MODELS = {
    "residual": residual,
    "block": Block,
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "lstm": lambda: nn.LSTM(4, 4, 2),
    "embedding": lambda: nn.Embedding(10, 4, padding_idx=0),
    "rope": modules_for_tests.Rope,
    "observer": torch.ao.quantization.MovingAverageMinMaxObserver,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "half": lambda: residual().half(),
    "bfloat16": lambda: Block().bfloat16(),
    "complex": lambda: nn.Linear(3, 3, dtype=torch.complex64),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fitted", [False, True], ids=["fresh", "trained"])
def test_ordinary_models_raise_nothing(name, fitted, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name]()
    content: dict = {"model": model.state_dict()}
    parameters = list(model.parameters())
    if fitted and parameters:
        optimizer = torch.optim.AdamW(parameters, eps=1e-4)  # 1e-8 is 0 in float16, and 0 / 0 NaN
        sum(p.abs().sum() for p in parameters).backward()
        optimizer.step()
        if name == "residual":
            model(torch.randn(2, 3, 9, 9))
        content["optimizer"] = optimizer.state_dict()
    torch.save(content, tmp_path / "model.pth")
    found = api.inspect(tmp_path / "model.pth", values=True).findings
    assert not {finding.code for finding in found} & BY_VALUE


@pytest.mark.parametrize("name", ["residual", "block", "encoder", "lstm", "rope", "bfloat16"])
def test_a_models_own_checkpoint_fits_it(name, tmp_path):
    model = MODELS[name]()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    found = api.diff(tmp_path / "model.pth", module=model, values=True).findings
    assert not {finding.code for finding in found} & (BY_VALUE | {"CK208"})

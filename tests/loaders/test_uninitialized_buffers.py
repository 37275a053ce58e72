"""A buffer that from_pretrained leaves uninitialized (transformers#48892) is an error."""

import json

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the extra `frameworks` is not installed")

from transformers import PretrainedConfig, PreTrainedModel

from ckptool.loaders.describe import describe_for_loader
from ckptool.modules import ModuleSpec, describe_module


class ToyConfig(PretrainedConfig):
    model_type = "toy_frequencies"


class ToyModel(PreTrainedModel):
    """Its constructor computes `freq`, and nothing fills it after a build on meta."""

    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.lin = nn.Linear(4, 4)
        self.register_buffer("freq", 1 / 10000 ** (torch.arange(4) / 4), persistent=False)
        self.post_init()

    @property
    def dummy_inputs(self):
        return {"x": torch.ones(2, 4)}

    def forward(self, x):
        return self.lin(x) * self.freq


class FilledModel(ToyModel):
    """The near miss: _init_weights fills it, as every class of transformers does."""

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            self.freq.copy_(1 / 10000 ** (torch.arange(4) / 4))


class MaskModel(ToyModel):
    """A mask of bool, which cannot be NaN, and integers."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool), persistent=False)
        self.register_buffer("ids", torch.arange(4), persistent=False)


class Rotary(nn.Module):
    """A sub-module that computes its table as Llama's does, outside of _init_weights."""

    def __init__(self):
        super().__init__()
        table = torch.outer(torch.arange(4.0), 1 / 10000 ** (torch.arange(4) / 4))
        self.register_buffer("cos_cached", table.cos(), persistent=False)


class RotaryModel(PreTrainedModel):
    """Its buffer is in a sub-module."""

    config_class = ToyConfig
    dummy_inputs = ToyModel.dummy_inputs

    def __init__(self, config):
        super().__init__(config)
        self.lin = nn.Linear(4, 4)
        self.rotary = Rotary()
        self.post_init()

    def forward(self, x):
        return self.lin(x) * self.rotary.cos_cached[0]


class FilledRotaryModel(RotaryModel):
    """The near miss: the sub-module's table is computed again."""

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Rotary):
            table = torch.outer(torch.arange(4.0), 1 / 10000 ** (torch.arange(4) / 4))
            module.cos_cached.copy_(table.cos())


class MissingModel(ToyModel):
    """A buffer that is saved, and that an old file lacks."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("scale", torch.full((4,), 2.0))


def make_toy():
    return ToyModel(ToyConfig())


def make_filled():
    return FilledModel(ToyConfig())


def make_masks():
    return MaskModel(ToyConfig())


def make_rotary():
    return RotaryModel(ToyConfig())


def make_filled_rotary():
    return FilledRotaryModel(ToyConfig())


def make_missing():
    return MissingModel(ToyConfig())


def find_dependent_buffers(model, folder, monkeypatch) -> set[str]:
    """Truth: the buffers that differ when from_pretrained's new memory holds something else."""
    values = []
    for fill in (3, 0):
        make = torch.empty_like

        def empty_like(*args, fill=fill, make=make, **kwargs):
            return make(*args, **kwargs).fill_(fill)

        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty_like", empty_like)
            values.append(dict(type(model).from_pretrained(folder).named_buffers()))
    return {name for name in values[0] if not torch.equal(values[0][name], values[1][name])}


@pytest.mark.parametrize(
    "make", [make_toy, make_filled, make_masks, make_rotary, make_filled_rotary]
)
def test_buffers_are_those_that_depend_on_what_memory_held(make, save_model, monkeypatch):
    model = make()
    truth = find_dependent_buffers(model, save_model(model), monkeypatch)
    assert bool(truth) == (make not in {make_filled, make_filled_rotary})
    described = describe_module(model, "toy")
    module_info = describe_for_loader(described, model, ModuleSpec("toy", loader="transformers"))
    assert set(module_info.uninitialized_buffers) == truth


def test_a_missing_saved_buffer_is_looked_at_too(save_model, run_command, monkeypatch):
    model = make_missing()
    folder = save_model(make_toy())
    assert find_dependent_buffers(model, folder, monkeypatch) == {"freq", "scale"}
    result = run_command("diff", str(folder), "-m", f"{__name__}:make_missing", "--no-config")
    assert result.code == 1
    assert "loads in part with from_pretrained(): 1 missing" in result.out


@pytest.mark.parametrize(
    ("make", "key"),
    [(make_toy, "freq"), (make_masks, "mask"), (make_rotary, "rotary.cos_cached")],
)
@pytest.mark.parametrize("command", ["diff", "verify", "gate", "audit"])
def test_it_is_an_error_in_every_command(command, make, key, save_model, run_command):
    code, findings = find_findings(command, make, save_model, run_command)
    assert code == 1
    assert ("CK227", "error", key) in {(f["code"], f["level"], f["key"]) for f in findings}
    assert "CK106" not in {f["code"] for f in findings}


@pytest.mark.parametrize("make", [make_filled, make_filled_rotary])
@pytest.mark.parametrize("command", ["diff", "verify", "gate", "audit"])
def test_what_init_weights_fills_is_no_error(command, make, save_model, run_command):
    code, findings = find_findings(command, make, save_model, run_command)
    assert code == 0
    assert "CK227" not in {f["code"] for f in findings}


def find_findings(command, make, save_model, run_command):
    place = () if command == "audit" else (str(save_model(make())),)
    result = run_command(command, *place, "-m", f"{__name__}:{make.__name__}", "--no-config",
                         "--format", "json")  # fmt: skip
    return result.code, json.loads(result.out)["findings"]


def test_load_state_dict_keeps_what_the_constructor_computes(save_model, run_command):
    """--loader torch is another way of loading, in which the buffer is right."""
    folder = save_model(make_toy())
    result = run_command("diff", str(folder), "-m", f"{__name__}:make_toy", "--loader", "torch",
                         "--no-config")  # fmt: skip
    assert result.code == 0
    assert "CK227" not in result.out

"""A buffer that from_pretrained leaves uninitialized (transformers#48892) is an error."""

import json

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the extra `frameworks` is not installed")

from transformers import PretrainedConfig, PreTrainedModel

from ckptool.loaders import describe_for_loader
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


@pytest.mark.parametrize("make", [make_toy, make_filled, make_masks])
def test_buffers_are_those_that_depend_on_what_memory_held(make, save_model, monkeypatch):
    model = make()
    truth = find_dependent_buffers(model, save_model(model), monkeypatch)
    assert bool(truth) == (make is not make_filled)
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


@pytest.mark.parametrize("command", ["diff", "verify", "gate", "audit"])
def test_it_is_an_error_in_every_command(command, save_model, run_command):
    folder = save_model(make_toy())
    place = () if command == "audit" else (str(folder),)
    result = run_command(command, *place, "-m", f"{__name__}:make_toy", "--no-config",
                         "--format", "json")  # fmt: skip
    assert result.code == 1
    findings = json.loads(result.out)["findings"]
    assert ("CK227", "error", "freq") in {(f["code"], f["level"], f["key"]) for f in findings}
    assert "CK106" not in {f["code"] for f in findings}

    place = () if command == "audit" else (str(save_model(make_filled(), "filled")),)
    filled = run_command(command, *place, "-m", f"{__name__}:make_filled", "--no-config",
                         "--format", "json")  # fmt: skip
    assert "CK227" not in {f["code"] for f in json.loads(filled.out)["findings"]}
    assert filled.code == 0, filled.out


def test_load_state_dict_keeps_what_the_constructor_computes(save_model, run_command):
    """--loader torch is another way of loading, in which the buffer is right."""
    folder = save_model(make_toy())
    result = run_command("diff", str(folder), "-m", f"{__name__}:make_toy", "--loader", "torch",
                         "--no-config")  # fmt: skip
    assert result.code == 0
    assert "CK227" not in result.out

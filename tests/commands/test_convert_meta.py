"""Tensors that were saved on meta are converted as torch.save writes them, and to nothing else."""

from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ckptool
from ckptool.errors import PlanError


def make_state():
    state = nn.Linear(2, 2).state_dict()
    state["meta"] = torch.empty(3, dtype=torch.bfloat16, device="meta")
    whole = torch.empty(4, 4, device="meta")
    state["view"], state["transposed"] = whole[1:], whole.T[:2]
    state["scalar"] = torch.empty((), dtype=torch.int64, device="meta")
    return state


CONTENTS = {
    "state": make_state,
    "plain dict": lambda: dict(make_state()),
    "nested": lambda: {"net": {"model": make_state()}, "epoch": 3},
    "two states": lambda: {"model": make_state(), "ema": make_state(), "step": 1},
    "all on meta": lambda: nn.Linear(2, 2, device="meta").state_dict(),
    "optimizer": lambda: {
        "model": nn.Linear(2, 2).state_dict(),
        "optimizer": {
            "state": {0: {"exp_avg": torch.empty(2, 2, device="meta"), "step": torch.tensor(1.0)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
    },
    "tied": lambda: OrderedDict.fromkeys(["a", "b"], torch.empty(2, 3, device="meta")),
    "parameters": lambda: OrderedDict(nn.Linear(2, 2, device="meta").named_parameters()),
}


def describe(value):
    """Return what torch.load gives, tensors by their properties and, if any, values."""
    if isinstance(value, torch.Tensor):
        facts = value.dtype, tuple(value.shape), value.device.type
        return (*facts, value.stride()) if value.is_meta else (*facts, value.tolist())
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [describe(item) for item in value]
    return value


@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", CONTENTS)
def test_a_converted_file_gives_what_the_old_one_gives(name, is_legacy, tmp_path):
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    torch.manual_seed(0)
    torch.save(CONTENTS[name](), old, _use_new_zipfile_serialization=not is_legacy)
    expected = describe(torch.load(old, weights_only=False))
    report = ckptool.convert(old, new)
    is_of_model = name != "optimizer"
    assert any("saved on meta" in note for note in report.conversions[0].notes) == is_of_model
    assert describe(torch.load(new, weights_only=True)) == expected


OPTIONS = {
    "dtype": ({"dtype": "bf16"}, lambda key, tensor: {key: cast(tensor)}),
    "renames": (
        {"renames": {"meta": "new"}},
        lambda key, tensor: {key.replace("meta", "new"): tensor},
    ),
    "strip": ({"strip": ["view"]}, lambda key, tensor: {} if key == "view" else {key: tensor}),
    "shards": ({"max_shard_size": 16, "to": "pth"}, lambda key, tensor: {key: tensor}),
}


def cast(tensor):
    """Return it in bfloat16 and contiguous, as all that is cast is written."""
    return tensor.to(torch.bfloat16).contiguous() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("option", OPTIONS)
def test_options_change_tensors_on_meta_as_torch_would(option, tmp_path):
    arguments, change = OPTIONS[option]
    state = make_state()
    torch.save(state, tmp_path / "old.pth")
    target = tmp_path / ("new" if option == "shards" else "new.pth")
    ckptool.convert(tmp_path / "old.pth", target, **arguments)
    files = sorted(target.glob("*.bin")) if option == "shards" else [target]
    result = {key: value for file in files for key, value in torch.load(file).items()}
    expected = {k: v for key, tensor in state.items() for k, v in change(key, tensor).items()}
    assert describe(result) == describe(expected)


@pytest.mark.parametrize("max_shard_size", [None, 16])
@pytest.mark.parametrize("name", ["state", "plain dict", "all on meta", "tied"])
def test_safetensors_have_no_tensor_without_values(name, max_shard_size, tmp_path):
    state = CONTENTS[name]()
    with pytest.raises((ValueError, RuntimeError, NotImplementedError)):
        save_file(dict(state), tmp_path / "plain.safetensors")
    torch.save(state, tmp_path / "old.pth")
    target = tmp_path / ("new.safetensors" if max_shard_size is None else "new")
    with pytest.raises(PlanError) as raised:
        ckptool.convert(
            tmp_path / "old.pth", target, to="safetensors", max_shard_size=max_shard_size
        )
    assert "saved on meta" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not target.exists()

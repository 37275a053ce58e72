"""A shard that the index names and that is not there: nothing is written as if it were whole."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ckptool
from ckptool.errors import PlanError, ReadError


@pytest.fixture(params=["shard", "tensor"])
def folder(request, tmp_path):
    """Two shards, of which one, or one tensor in it, is not there."""
    state = nn.Linear(3, 2).state_dict()
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = {key: f"model-0000{i}-of-00002.safetensors" for i, key in enumerate(state, 1)}
    for key, name in names.items():
        save_file({key: state[key]}, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if request.param == "shard":
        (folder / names["bias"]).unlink()
    else:
        save_file({"other": torch.ones(1)}, folder / names["bias"], {"format": "pt"})
    return folder


def test_nothing_is_written_of_an_incomplete_checkpoint(folder, tmp_path):
    with pytest.raises(PlanError, match="is not complete: the index names"):
        ckptool.convert(folder, tmp_path / "out.safetensors")
    with pytest.raises(PlanError, match="is not complete: the index names"):
        ckptool.migrate(folder, tmp_path / "out.safetensors")
    with pytest.raises(ReadError, match="is not complete: the index names"):
        ckptool.lock(folder, output=tmp_path / "lock.json")
    assert [path.name for path in tmp_path.iterdir()] == ["sharded"]


def test_its_digest_is_that_of_no_complete_checkpoint(folder):
    report = ckptool.digest(folder)
    assert report.checkpoints[0].digest.startswith("partial:")
    assert any("does not exist" in skipped.reason for skipped in report.skipped)


def test_a_module_gets_the_missing_key_where_a_value_is_named(folder, tmp_path):
    """What --inject names is written: the plan says where each key of the module comes from."""
    target = tmp_path / "out.safetensors"
    surplus = ["other"] if "other" in ckptool.tensors(folder) else []
    ckptool.migrate(folder, target, module=nn.Linear(3, 2), inject={"bias": "zeros"}, drop=surplus)
    result = nn.Linear(3, 2).load_state_dict(load_file(target))
    assert not result.missing_keys

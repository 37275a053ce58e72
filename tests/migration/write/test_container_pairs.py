"""Whatever the old container, what it has beside the state is in the .pth that is written."""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from files import same_bits
from formats import tar_files
from migration.matrix_truth import check_same_value
from torch import nn
from torch.distributed import checkpoint as dcp

import ckptool
from ckptool.config import ProjectConfig

pytestmark = pytest.mark.filterwarnings("ignore")


def save_zip(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def save_legacy(content: object, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def save_pickle(content: object, path: Path) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def save_dcp(content: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(content, checkpoint_id=path)
    return path


SAVERS = [save_zip, save_legacy, save_pickle, save_dcp]


def train() -> dict[str, Any]:
    """Return a training checkpoint: numbers, texts and tensors beside a state_dict."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "epoch": 7,
        "step": torch.tensor(5),
        "args": {"lr": 0.1, "names": ["a", None], "size": (1, 2)},
    }


def sort_keys(value: Any) -> Any:
    """Return the value with plain dicts, their keys sorted and as text, as DCP writes them."""
    if isinstance(value, dict):
        return {str(key): sort_keys(value[key]) for key in sorted(value, key=str)}
    return type(value)(map(sort_keys, value)) if isinstance(value, list | tuple) else value


def migrate(source: Path, target: Path, **options) -> Path:
    ckptool.migrate(source, target, config=ProjectConfig(), **options)
    return target


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("is_renamed", [False, True], ids=["as it is", "renamed"])
def test_everything_beside_the_state_is_written(tmp_path, save, is_renamed):
    content = train()
    source = save(copy.deepcopy(content), tmp_path / "old")
    renames = {"weight": "kernel"} if is_renamed else None
    target = migrate(source, tmp_path / "new.pth", at="model", renames=renames)
    if is_renamed:
        content["model"]["kernel"] = content["model"].pop("weight")
    found = torch.load(target, weights_only=True)
    check_same_value(sort_keys(found), sort_keys(content))


@pytest.mark.parametrize("save", SAVERS)
def test_a_number_among_the_tensors_is_written(tmp_path, save):
    source = save({**nn.Linear(2, 2).state_dict(), "epoch": 3}, tmp_path / "old")
    found = torch.load(migrate(source, tmp_path / "new.pth"), weights_only=True)
    assert {*found} == {"weight", "bias", "epoch"}
    assert found["epoch"] == 3


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("is_renamed", [False, True], ids=["as it is", "renamed"])
def test_a_state_in_a_sequence_is_changed_in_its_place(tmp_path, save, kind, is_renamed):
    state = dict(nn.Linear(2, 2).state_dict())
    source = save(kind([5, kind([state, "best"])]), tmp_path / "old")
    renames = {"weight": "kernel"} if is_renamed else None
    target = migrate(source, tmp_path / "new.pth", renames=renames)
    if is_renamed:
        state["kernel"] = state.pop("weight")
    epoch, (found, word) = torch.load(target, weights_only=True)
    assert (epoch, word) == (5, "best")
    check_same_value(sort_keys(found), sort_keys(state))


def test_a_tar_of_torch_before_0_2(tmp_path):
    source = tar_files.write(tmp_path / "old.tar")
    found = torch.load(migrate(source, tmp_path / "new.pth"), weights_only=True)
    assert found["epoch"] == 3
    assert same_bits(found["w"], tar_files.DATA.view(2, 3))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
def test_an_object_of_an_unknown_class_is_kept(tmp_path, save):
    source = save({"model": nn.Linear(2, 2).state_dict(), "code": Named("x")}, tmp_path / "old")
    found = torch.load(migrate(source, tmp_path / "new.pth"), weights_only=False)
    assert found["code"].name == "x"


class Named:
    def __init__(self, name: str) -> None:
        self.name = name


@pytest.mark.parametrize("save", SAVERS)
def test_safetensors_asks_before_it_leaves_something_out(tmp_path, save: Callable):
    source = save({"model": nn.Linear(2, 2).state_dict(), "epoch": 7}, tmp_path / "old")
    with pytest.raises(ckptool.errors.PlanError, match="cannot store `epoch`"):
        migrate(source, tmp_path / "new.safetensors")
    target = migrate(source, tmp_path / "new.safetensors", drop_extra=True)
    assert [*ckptool.inspect(target).checkpoints[0].states]

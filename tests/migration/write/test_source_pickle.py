"""What torch.save before 1.6 or DCP saved is written again as today's torch.save would write it."""

import io
import pickle
import warnings

import pytest
import torch
from files import same_bits, save_dcp
from migration.matrix_truth import check_same_value
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import ckptool
from ckptool.config import ProjectConfig

LEGACY = {"_use_new_zipfile_serialization": False}
pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source")


def train(module: nn.Module) -> dict[str, object]:
    """Return the state_dict of Adam after a step."""
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def convert(source, target, **options):
    ckptool.migrate(source, target, config=ProjectConfig(), **options)
    return target


@pytest.mark.parametrize("drop", [(), ("bias",)])
def test_a_training_checkpoint_of_before_1_6(tmp_path, drop):
    module = nn.Linear(2, 2)
    optimizer = train(module)
    content = {"model": module.state_dict(), "optimizer": optimizer, "epoch": 7, "args": {"lr": 1}}
    torch.save(content, tmp_path / "old.pth", **LEGACY)
    target = convert(tmp_path / "old.pth", tmp_path / "new.pth", at="model", drop=drop)
    found = torch.load(target, weights_only=True)
    expected = {key: t for key, t in content["model"].items() if key not in drop}
    check_same_value({**found, "model": dict(found["model"])}, {**content, "model": expected})
    assert found["model"]._metadata == content["model"]._metadata


@pytest.mark.parametrize("at", ["", "model"])
def test_a_pickled_module_of_before_1_6_and_another_beside_it(tmp_path, at):
    module, average = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    content = {"model": module, "ema": average, "epoch": 7} if at else module
    torch.save(content, tmp_path / "old.pth", **LEGACY)
    target = convert(tmp_path / "old.pth", tmp_path / "new.pth", at=at or ".")
    found = torch.load(target, weights_only=False)
    if at:
        assert (type(found["ema"]), found["epoch"]) == (nn.Sequential, 7)
        check_same_value(found["ema"].state_dict(), average.state_dict())
        found = found["model"]
    check_same_value(dict(found), dict(module.state_dict()))


class StorageId:
    """Stands for a storage in a pickle that is written by hand."""

    def __init__(self, *view: object) -> None:
        self.id = ("storage", torch.FloatStorage, "7", "cpu", 6, view or None)


class RebuiltTensor:
    def __init__(self, storage: StorageId, offset: int) -> None:
        self.arguments = storage, offset, (2,), (1,)

    def __reduce__(self):
        return torch._utils._rebuild_tensor, self.arguments


class LegacyPickler(pickle.Pickler):
    def persistent_id(self, node: object) -> object:
        return node.id if isinstance(node, StorageId) else None


def write_views(path) -> None:
    """Write a file as torch before 0.4 did: two slices of one storage have views in their ids."""
    slices = {
        "head": RebuiltTensor(StorageId("h", 0, 3), 1),
        "tail": RebuiltTensor(StorageId("t", 3, 3), 0),
        "whole": RebuiltTensor(StorageId(), 4),
    }
    written = io.BytesIO()
    LegacyPickler(written, 2).dump({"model": slices, "epoch": 7})
    torch.save({"w": torch.arange(6.0)}, path, **LEGACY)
    data = path.read_bytes()
    stream = io.BytesIO(data)
    head = [stream.tell() for _ in range(3) if pickle.load(stream) is not None]
    storage = (6).to_bytes(8, "little") + torch.arange(6.0).numpy().tobytes()
    path.write_bytes(data[: head[-1]] + written.getvalue() + pickle.dumps(["7"], 2) + storage)


def test_views_of_storages_as_torch_before_0_4_saved_them(tmp_path):
    write_views(tmp_path / "old.pth")
    before = torch.load(tmp_path / "old.pth", weights_only=False)
    after = torch.load(convert(tmp_path / "old.pth", tmp_path / "new.pth"), weights_only=True)
    check_same_value(after, before)
    assert same_bits(after["model"]["head"], torch.tensor([1.0, 2.0]))
    assert same_bits(after["model"]["whole"], torch.tensor([4.0, 5.0]))


def test_a_dcp_folder_becomes_what_torch_makes_of_it(tmp_path):
    module = nn.Linear(2, 2)
    content = {
        "model": module.state_dict(),
        "optimizer": train(module),
        "epoch": 7,
        "seen": {"files": ["a", "b"], "losses": (0.5, 0.25)},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_dcp(content, tmp_path / "old")
        dcp_to_torch_save(tmp_path / "old", tmp_path / "expected.pth")
    target = convert(tmp_path / "old", tmp_path / "new.pth", at="model")
    expected = torch.load(tmp_path / "expected.pth", weights_only=True)
    check_same_value(torch.load(target, weights_only=True), expected)
    dropped = convert(tmp_path / "old", tmp_path / "less.pth", at="model", drop=["bias"])
    del expected["model"]["bias"]
    check_same_value(torch.load(dropped, weights_only=True), expected)

"""A large file is begun before its plan is known: what comes out is what would come out anyway."""

import json
import os
from collections import OrderedDict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import ckptool
from ckptool.errors import PlanError, WriteError
from ckptool.formats import open_checkpoint
from ckptool.migration.plan.key_operations import DropKeys, InjectTensor, RenameKeys
from ckptool.migration.plan.plan_file import Plan
from ckptool.migration.plan.tensor_operations import CastTensors
from ckptool.migration.write import copy_threads, early_copy
from ckptool.migration.write.file import compute_header_room

MASK = InjectTensor(key="a.mask", source="literal:[1.0, 2.0]")


@pytest.fixture
def source(tmp_path):
    """Return a file of 80 MB: several widths, and more than one piece a tensor."""
    torch.manual_seed(0)
    state = OrderedDict((f"layers.{n}.weight", torch.randn(1024, 1024 + n)) for n in range(19))
    state["layers.3.steps"] = torch.tensor(7)
    state["layers.4.flags"] = torch.tensor([True, False, True])
    torch.save(state, tmp_path / "old.pth")
    return tmp_path / "old.pth", state


PLANS = {
    "nothing": Plan(),
    "inject behind": Plan((MASK,)),
    "inject before": Plan((InjectTensor(key="n", source="literal:7"),)),
    "drop the first": Plan((DropKeys(key="layers.0.weight"),)),
    "drop the last": Plan((DropKeys(key="layers.4.flags"),)),
    "rename": Plan((RenameKeys(key="layers.", to="blocks.", how="prefix"), MASK)),
    "cast": Plan((CastTensors(dtype="float16", keep=("layers.1*",)),)),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_bytes_are_the_same_as_without(source, tmp_path, monkeypatch, name):
    (path, _), plan = source, PLANS[name]
    ckptool.migrate(path, tmp_path / "ahead.safetensors", plan=plan)
    monkeypatch.setattr(early_copy.EarlyCopy, "start_copying", lambda *_, **__: None)
    ckptool.migrate(path, tmp_path / "after.safetensors", plan=plan)
    one, other = tmp_path / "ahead.safetensors", tmp_path / "after.safetensors"
    assert one.read_bytes() == other.read_bytes()


def test_what_is_written_loads_and_keeps_its_values(source, tmp_path):
    path, state = source
    done = ckptool.migrate(path, tmp_path / "new.safetensors", plan=Plan((MASK,)))
    found = load_file(tmp_path / "new.safetensors")
    assert found.pop("a.mask").tolist() == [1.0, 2.0]
    assert found.keys() == state.keys()
    assert all(found[key].equal(state[key]) for key in state)
    with safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        record = json.loads(file.metadata()["ckptool.provenance"])
    assert record["source"]["digest"] == done.source_digest
    small = ckptool.migrate(path, tmp_path / "new.pth", plan=Plan((MASK,)))
    assert (small.source_digest, small.result_digest) == (done.source_digest, done.result_digest)


def test_ties_are_written_once(tmp_path):
    weight = torch.randn(4096, 4200)
    state = {"a": weight, "b": weight, "c": weight.clone()}
    torch.save(state, tmp_path / "tied.pth")
    ckptool.migrate(tmp_path / "tied.pth", tmp_path / "new.safetensors")
    assert load_file(tmp_path / "new.safetensors").keys() == {"a", "c"}
    ckptool.migrate(tmp_path / "new.safetensors", tmp_path / "back.pth")
    found = torch.load(tmp_path / "back.pth")
    assert found["a"].data_ptr() == found["b"].data_ptr() != found["c"].data_ptr()


def test_the_header_has_room_for_the_plan(source, tmp_path):
    path, _ = source
    state = open_checkpoint(path).states[0]
    ckptool.migrate(path, tmp_path / "new.safetensors", plan=Plan((MASK,)))
    with (tmp_path / "new.safetensors").open("rb") as written:
        assert int.from_bytes(written.read(8), "little") + 8 == compute_header_room(state)


def test_a_plan_that_is_refused_leaves_nothing_behind(source, tmp_path):
    path, _ = source
    with pytest.raises(PlanError, match="step 1"):
        ckptool.migrate(path, tmp_path / "new.safetensors", plan=Plan((DropKeys(key="none"),)))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_read_back_is_not_kept(source, tmp_path, monkeypatch):
    """A disk that gives back other bytes than it was given."""
    path, _ = source

    class Lying:
        pwrite = staticmethod(copy_threads.os.pwrite)

        @staticmethod
        def preadv(descriptor, buffers, offset):
            count = os.preadv(descriptor, buffers, offset)
            buffers[0][-1] ^= offset > 10 << 20
            return count

    monkeypatch.setattr(copy_threads, "os", Lying)
    with pytest.raises(WriteError, match="not written: read back, byte"):
        ckptool.migrate(path, tmp_path / "new.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

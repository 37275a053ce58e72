"""Folders of shards: what changes is written, what stays is linked, and the index fits."""
# ruff: noqa: PTH208

import json
import os
from pathlib import Path

import pytest
import torch
from files import write_shards
from safetensors.torch import load_file

import ckptool
from ckptool.errors import UsageError, WriteError
from ckptool.migration.plan.key_operations import DropKeys, RenameKeys
from ckptool.migration.plan.plan_file import Plan
from ckptool.migration.plan.tensor_operations import CastTensors, TieTensors


@pytest.fixture
def sharded(tmp_path) -> Path:
    """Return a folder of three shards of two tensors."""
    shards = [
        {f"layers.{n}.w": torch.full((4, 5), float(n)), f"layers.{n}.b": torch.ones(n + 1)}
        for n in range(3)
    ]
    write_shards(tmp_path / "old", *shards, total_size=264, note="kept")
    return tmp_path / "old"


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = {}
    for name in set(index["weight_map"].values()):
        part = load_file(folder / name)
        assert set(part) == {key for key, home in index["weight_map"].items() if home == name}
        found |= part
    assert set(os.listdir(folder)) == {
        *index["weight_map"].values(),
        "model.safetensors.index.json",
    }
    return found


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.safetensors")}


def test_only_the_shard_that_changes_is_written(tmp_path, sharded):
    before = {path.name: path.read_bytes() for path in sharded.iterdir()}
    ckptool.migrate(sharded, tmp_path / "new", inject={"layers.1.mask": "literal:[1, 2]"})
    old, new = inodes(sharded), inodes(tmp_path / "new")
    changed = "model-00002-of-00003.safetensors"
    assert {name for name in old if old[name] != new[name]} == {changed}
    state, expected = loaded(tmp_path / "new"), loaded(sharded)
    assert torch.equal(state.pop("layers.1.mask"), torch.tensor([1, 2]))
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert {path.name: path.read_bytes() for path in sharded.iterdir()} == before
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    assert (index["metadata"]["total_size"], index["metadata"]["note"]) == (280, "kept")
    record = json.loads(index["metadata"]["ckptool.provenance"])
    assert record["values"] == {"layers.1.mask": "literal:[1, 2]"}


def test_what_lies_beside_the_shards_is_copied_along(tmp_path, sharded):
    (sharded / "config.json").write_text('{"layers": 3}')
    (sharded / "tokenizer.model").write_bytes(b"\0words")
    (sharded / "pytorch_model.bin").write_bytes(b"other weights")
    (sharded / ".cache").write_text("hidden")
    report = ckptool.migrate(sharded, tmp_path / "new", inject={"x": "literal:1"})
    assert "also copied: config.json, tokenizer.model" in report.notes
    new = tmp_path / "new"
    assert {p.name for p in new.iterdir() if p.suffix != ".safetensors"} == {
        "config.json", "tokenizer.model", "model.safetensors.index.json"
    }  # fmt: skip
    assert (new / "tokenizer.model").read_bytes() == b"\0words"
    assert (new / "config.json").stat().st_ino != (sharded / "config.json").stat().st_ino


def test_without_links_every_file_is_its_own(tmp_path, sharded):
    ckptool.migrate(sharded, tmp_path / "new", links=False)
    old, new = inodes(sharded), inodes(tmp_path / "new")
    assert not {*old.values()} & {*new.values()}
    assert ckptool.diff(sharded, tmp_path / "new").verdict == "identical"


@pytest.mark.parametrize(
    ("op", "changed"),
    [
        (DropKeys(key="layers.2.*"), set()),
        (RenameKeys(key="layers.0.w", to="first"), {1}),
        (CastTensors(dtype="bfloat16", keys="layers.2.w"), {3}),
        (TieTensors(key="layers.0.tied", to="layers.2.w"), set()),
    ],
)
def test_steps(tmp_path, sharded, op, changed):
    ckptool.migrate(sharded, tmp_path / "new", plan=Plan((op,)))
    old, new = inodes(sharded), inodes(tmp_path / "new")
    written = {int(name[10]) for name in new if old[name] != new[name]}
    assert written == changed
    loaded(tmp_path / "new")
    report = ckptool.migrate(tmp_path / "new", tmp_path / "one.pth")
    assert report.exit_code == 0
    found = torch.load(tmp_path / "one.pth")
    assert ("layers.0.tied" in found) == isinstance(op, TieTensors)


def test_one_file_is_cut_into_shards_and_joined_again(tmp_path, sharded):
    whole = loaded(sharded)
    torch.save(whole, tmp_path / "one.pth")
    report = ckptool.migrate(tmp_path / "one.pth", tmp_path / "new", max_shard_size=100)
    assert report.verdict == "converted"
    assert len(inodes(tmp_path / "new")) == 3
    assert all(torch.equal(loaded(tmp_path / "new")[key], whole[key]) for key in whole)
    ckptool.migrate(tmp_path / "new", tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(again[key], whole[key]) for key in whole)


def test_a_module_loads_the_folder(tmp_path):
    from migration import models

    module = models.Scaled()
    torch.save({k: v for k, v in module.state_dict().items() if k != "scale"}, tmp_path / "a.pth")
    report = ckptool.migrate(
        tmp_path / "a.pth", tmp_path / "new", max_shard_size=16, module=module,
        inject={"scale": "constructor"},
    )  # fmt: skip
    assert report.verdict == "migrated: loads strictly"
    assert loaded(tmp_path / "new").keys() == module.state_dict().keys()


def test_a_folder_that_is_there_is_replaced_in_one_step(tmp_path, sharded):
    target = tmp_path / "new"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(
        WriteError, match="already exists: choose another name, or replace it with --force"
    ):
        ckptool.migrate(sharded, target)
    assert os.listdir(target) == ["old.txt"]
    ckptool.migrate(sharded, target, force=True)
    assert loaded(target).keys() == loaded(sharded).keys()
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


def test_what_makes_no_folder(tmp_path, sharded):
    with pytest.raises(
        UsageError,
        match="is a folder of safetensors files: give it without a suffix, and without --to pth",
    ):
        ckptool.migrate(sharded, tmp_path / "new.pth", max_shard_size=100)
    with pytest.raises(WriteError, match=r"is .*old itself"):
        ckptool.migrate(sharded, sharded, force=True)

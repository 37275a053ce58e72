"""read(write(x)) = x: whatever is written, torch and safetensors read what was there."""

import contextlib
import json
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from files import same_bits
from hypothesis import given, settings
from migration.states import SHM, state_dicts, ties
from paths import examples
from safetensors import safe_open
from safetensors.torch import load_file

import ckptool
from ckptool.errors import PlanError


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory):
    """The repository's own configuration names a module for its samples."""
    with contextlib.chdir(tmp_path_factory.mktemp("elsewhere")):
        yield


def converted(source: Path, target: Path, **options):
    report = ckptool.migrate(source, target, **options)
    assert not [path for path in target.parent.iterdir() if path.name.startswith(".")]
    return report


def versions(state) -> dict | None:
    metadata = getattr(state, "_metadata", None)
    return None if metadata is None else {p: m.get("version") for p, m in metadata.items()}


@given(state_dicts())
@settings(max_examples=examples(40))
def test_to_safetensors_and_back(state):
    with TemporaryDirectory(dir=SHM) as name:
        folder = Path(name)
        torch.save(state, folder / "a.pth")
        there = converted(folder / "a.pth", folder / "b.safetensors")
        back = converted(folder / "b.safetensors", folder / "c.pth")
        found = load_file(folder / "b.safetensors")
        with safe_open(folder / "b.safetensors", "pt") as file:
            metadata = file.metadata()
        dropped = json.loads(metadata.get("ckptool.ties", "{}"))
        assert metadata["format"] == "pt"
        assert found.keys() | dropped.keys() == state.keys()
        assert all(same_bits(found[key], state[key]) for key in found)
        assert all(same_bits(found[kept], state[key]) for key, kept in dropped.items())
        again = torch.load(folder / "c.pth", weights_only=True)
        assert again.keys() == state.keys()
        assert all(same_bits(again[key], state[key]) for key in state)
        assert ties(again) == ties(state)
        assert versions(again) == versions(state)
        assert there.source_digest == there.result_digest == back.result_digest


@given(state_dicts())
@settings(max_examples=examples(25))
def test_from_pth_to_pth_the_state_stays_byte_for_byte(state):
    with TemporaryDirectory(dir=SHM) as name:
        folder = Path(name)
        torch.save({"epoch": 3, "model": state}, folder / "a.pth")
        report = (
            converted(folder / "a.pth", folder / "b.pth", drop=[next(iter(state))])
            if len(state) > 1
            else converted(folder / "a.pth", folder / "b.pth")
        )
        found = torch.load(folder / "b.pth", weights_only=True)
        kept = OrderedDict(list(state.items())[len(report.steps) :])
        assert found["epoch"] == 3
        assert list(found["model"]) == list(kept)
        assert type(found["model"]) is OrderedDict
        assert all(same_bits(found["model"][key], kept[key]) for key in kept)
        assert all(found["model"][key].stride() == kept[key].stride() for key in kept)
        assert ties(found["model"]) == ties(kept)
        assert versions(found["model"]) == versions(state)


def test_a_training_checkpoint_keeps_all_that_is_around(tmp_path, samples):
    converted(samples / "training.pth", tmp_path / "b.pth", at="model", drop=["mask"])
    before = torch.load(samples / "training.pth")
    after = torch.load(tmp_path / "b.pth")
    assert after.keys() == before.keys()
    assert str(after["optimizer"]) == str(before["optimizer"])
    assert (after["epoch"], after["best_loss"]) == (7, 0.25)
    assert list(after["model"]) == ["W_query.weight", "W_key.weight", "W_value.weight"]


def test_what_safetensors_cannot_hold_is_named_and_dropped_only_when_asked(tmp_path, samples):
    target = tmp_path / "b.safetensors"
    with pytest.raises(PlanError, match=r"cannot store `optimizer` .*`epoch` \(7\).*--drop-extra"):
        ckptool.migrate(samples / "training.pth", target, at="model")
    assert not target.exists()
    report = converted(samples / "training.pth", target, at="model", drop_extra=True)
    assert "dropped, as requested: `optimizer`" in report.notes[0]
    assert load_file(target)["mask"].max() == 2


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.eye(3).to_sparse(), "sparse_coo"),
        (torch.ones(2, dtype=torch.complex128), "complex128"),
    ],
)
def test_a_tensor_that_safetensors_cannot_hold_is_refused_by_name(tmp_path, tensor, why):
    torch.save({"fine": torch.ones(2), "odd": tensor}, tmp_path / "a.pth")
    with pytest.raises(PlanError, match=f"CK311: .*`odd` .*{why}"):
        ckptool.migrate(tmp_path / "a.pth", tmp_path / "b.safetensors")
    # A .pth can: the object itself is kept.
    converted(tmp_path / "a.pth", tmp_path / "b.pth", drop=["fine"])
    assert str(torch.load(tmp_path / "b.pth")["odd"]) == str(tensor)


def test_objects_of_unknown_classes_are_kept_without_their_classes(tmp_path):
    from argparse import Namespace

    torch.save({"args": Namespace(lr=0.5), "model": {"w": torch.ones(2)}}, tmp_path / "a.pth")
    converted(tmp_path / "a.pth", tmp_path / "b.pth", inject={"m": "literal:[1.5, 2]"})
    found = torch.load(tmp_path / "b.pth", weights_only=False)
    assert found["args"] == Namespace(lr=0.5)
    assert found["model"]["m"].tolist() == [1.5, 2.0]


def test_a_file_of_compressed_records(tmp_path):
    import zipfile

    torch.save({"w": torch.arange(1000.0), "v": torch.ones(3)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    converted(tmp_path / "b.pth", tmp_path / "c.pth", drop=["v"])
    converted(tmp_path / "b.pth", tmp_path / "d.safetensors")
    for found in (torch.load(tmp_path / "c.pth"), load_file(tmp_path / "d.safetensors")):
        assert torch.equal(found["w"], torch.arange(1000.0))


def test_the_record_beside_a_pth(tmp_path, samples):
    report = converted(samples / "model.pth", tmp_path / "b.pth")
    record = json.loads((tmp_path / "b.pth.ckptool.json").read_text())
    assert record["source"] == {
        "name": "model.pth", "container": "torch-zip", "digest": report.source_digest
    }  # fmt: skip
    assert record["result"] == {"digest": report.result_digest}
    converted(samples / "model.pth", tmp_path / "c.pth", provenance=False)
    assert not (tmp_path / "c.pth.ckptool.json").exists()


def test_a_file_of_torch_before_1_6(tmp_path):
    state = OrderedDict(w=torch.arange(6.0).reshape(2, 3), v=torch.ones(2, dtype=torch.bfloat16))
    state["tied"] = state["w"]
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    converted(tmp_path / "a.pth", tmp_path / "b.pth")
    converted(tmp_path / "a.pth", tmp_path / "c.safetensors")
    found = torch.load(tmp_path / "b.pth", mmap=True)
    assert all(same_bits(found[key], state[key]) for key in state)
    assert ties(found) == ties(state)
    assert same_bits(load_file(tmp_path / "c.safetensors")["v"], state["v"])

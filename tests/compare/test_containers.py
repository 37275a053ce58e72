"""One state in every container: `diff` of two files, `digest`, `verify` and `gate` agree on it."""

import pickle
from pathlib import Path

import msgspec
import pytest
import torch
from files import save
from migration.matrix_modules import UNSAVED_CLASSES, make_trained_module
from migration.matrix_sources import SOURCES, write_source
from safetensors.torch import save_file, save_model
from torch import nn

import ckptool
from ckptool.compare.states import list_entries_outside
from ckptool.config import ProjectConfig
from ckptool.model import Checkpoint, Container, PlainEntry

pytestmark = pytest.mark.matrix

MODULES = "migration.matrix_modules"
INPUTS = (f"{MODULES}:example_inputs",)
ONE_STATE = [name for name, source in SOURCES.items() if not source.prefix and "EMA" not in name]
"""Sources that hold the module's state_dict under its own keys, and no second one."""
TIED = pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])


def is_unproved_tie(old: str, new: str, tied: bool) -> bool:
    """Whether one file leaves a tied name out, and neither file says that it is tied."""
    names = {old, new}
    separated = any(SOURCES[name].separates_ties for name in names)
    return tied and "safetensors shards" in names and separated


@TIED
@pytest.mark.parametrize("new", ONE_STATE)
@pytest.mark.parametrize("old", ONE_STATE)
def test_one_state_in_two_containers(old, new, tied):
    report = ckptool.diff(write_source(old, tied), write_source(new, tied))
    if is_unproved_tie(old, new, tied):
        assert (report.verdict, report.exit_code) == ("breaking", 1)
        assert {*report.added_keys, *report.removed_keys} == {"head.weight"}
        return
    verdict = "identical" if old == new else "same state, different format"
    assert (report.verdict, report.exit_code) == (verdict, 0)
    assert (report.added_keys, report.removed_keys, report.changed_keys) == ((), (), ())
    stores_one_name = {SOURCES[name].stores_one_name for name in (old, new)}
    is_left_out = tied and stores_one_name == {True, False}
    assert report.retied_keys == ({"head.weight": "embed.weight"} if is_left_out else {})


@TIED
@pytest.mark.parametrize("new", ONE_STATE)
@pytest.mark.parametrize("old", ["plain", "nested", "safetensors", "DCP", "whole module"])
def test_one_changed_element_shows_in_every_container(old, new, tied):
    report = ckptool.diff(write_source(old, tied), write_source(new, tied, changed=True))
    expected = "breaking" if is_unproved_tie(old, new, tied) else "values differ"
    assert (report.verdict, report.exit_code) == (expected, 1)
    assert {key.removeprefix("model.") for key in report.value_keys} <= {
        "head.weight",
        "embed.weight",
    }


@TIED
@pytest.mark.parametrize("name", ONE_STATE)
def test_one_digest(name, tied):
    plain = ckptool.digest(write_source("plain", tied)).checkpoints[0]
    place = ".".join(SOURCES[name].at) or "."
    found = ckptool.digest(write_source(name, tied), at=place).checkpoints[0]
    changed = ckptool.digest(write_source(name, tied, changed=True), at=place).checkpoints[0]
    is_unrecorded = tied and name == "safetensors shards"
    assert (found.digest == plain.digest) is not is_unrecorded
    assert changed.digest != found.digest


@TIED
@pytest.mark.parametrize("name", SOURCES)
def test_verify_passes_what_torch_loads(name, tied):
    report = ckptool.verify(
        write_source(name, tied),
        module=f"{MODULES}:{UNSAVED_CLASSES[tied].__name__}",
        at=".".join(SOURCES[name].at) or None,
        inputs=INPUTS,
        config=ProjectConfig(),
    )
    failed = [level.level for level in report.levels if level.status == "failed"]
    assert failed == ([] if loads_strictly(name, tied) else ["load"])
    assert report.exit_code == bool(failed)


def loads_strictly(name: str, tied: bool) -> bool:
    """Ask torch whether the file's keys are the module's."""
    state = {
        f"{SOURCES[name].prefix}{k}": t for k, t in make_trained_module(tied).state_dict().items()
    }
    try:
        UNSAVED_CLASSES[tied]().load_state_dict(state, strict=True)
    except RuntimeError:
        return False
    return True


@TIED
@pytest.mark.parametrize("name", SOURCES)
def test_gate_passes_what_torch_loads_without_running_code(name, tied):
    report = ckptool.gate(
        [write_source(name, tied)],
        module=f"{MODULES}:{UNSAVED_CLASSES[tied].__name__}",
        config=ProjectConfig(),
    )
    errors = {finding.code for finding in report.findings if finding.level == "error"}
    if runs_code(name, tied):
        assert errors == {"CK301", "CK302"}
    elif not loads_strictly(name, tied):
        assert errors >= {"CK851"}
    else:
        assert errors == set()
    assert report.exit_code == bool(errors)


def runs_code(name: str, tied: bool) -> bool:
    """Ask torch whether it refuses the file with weights_only: a pickled module."""
    path = write_source(name, tied)
    if path.suffix not in {".pth", ".ckpt"}:
        return False
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        return True
    return False


def test_an_epoch_that_differs_is_found_in_another_container_too(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    old = save(tmp_path / "old.pth", {"model": state, "epoch": 7, "note": "x"})
    legacy = {"_use_new_zipfile_serialization": False}
    new = save(tmp_path / "new.pth", {"model": state, "epoch": 8, "loss": 0.5}, **legacy)
    report = ckptool.diff(old, new)
    assert (report.verdict, report.exit_code) == ("plain data differs", 1)
    assert report.changed_entries == ("epoch",)
    assert [(s.what, s.reason) for s in report.skipped] == [
        ("other content of the old file", "`note`"),
        ("other content of the new file", "`loss`"),
    ]


def test_what_lies_beside_the_state_is_named_as_not_compared():
    report = ckptool.diff(write_source("nested twice", False), write_source("safetensors", False))
    assert [(s.what, s.reason) for s in report.skipped] == [
        (
            "other content of the old file",
            "`state.optimizer` (18 tensors), `epoch`, `best_loss`",
        )
    ]


def test_a_diff_in_parts_says_what_a_whole_one_does(tmp_path):
    files = write_source("nested", True), write_source("safetensors", True)
    for number in (1, 2):
        part = ckptool.diff(*files, shard=(number, 2))
        (tmp_path / f"{number}.json").write_bytes(msgspec.json.encode(part))
    merged = ckptool.merge([tmp_path / "1.json", tmp_path / "2.json"])
    whole = ckptool.diff(*files)
    assert (merged.verdict, merged.skipped, merged.retied_keys) == (
        whole.verdict,
        whole.skipped,
        whole.retied_keys,
    )


def test_entries_below_a_state_are_told_from_those_beside_it():
    places = ["a", "a.b", "a-c", "b.a", "ab"]
    found = ["a", "a.c", "a.b.c", "a-c.x", "ab", "abc", "b", "b.a.x", "b.b", "a-"]
    checkpoint = Checkpoint(
        Path("x"), Container.TORCH_ZIP, 0, (), tuple(PlainEntry(at, "") for at in found)
    )
    expected = [at for at in found if not any(at.startswith(f"{place}.") for place in places)]
    assert [entry.at for entry in list_entries_outside(checkpoint, places)] == expected


def test_a_tie_that_metadata_invents_hides_no_difference(tmp_path):
    first, second = torch.ones(2, 2), torch.zeros(2, 2)
    old = save(tmp_path / "old.pth", {"a": first, "b": second})
    new, lying = tmp_path / "new.safetensors", tmp_path / "lying.safetensors"
    save_file({"a": first}, new)
    save_file({"a": first}, lying, metadata={"b": "a"})
    assert ckptool.diff(old, new).verdict == "breaking"
    assert ckptool.diff(old, new).removed_keys == ("b",)
    report = ckptool.diff(old, lying)
    assert (report.verdict, report.exit_code, report.value_keys) == ("values differ", 1, ("b",))


def test_the_order_of_tied_keys_is_no_difference(tmp_path):
    weight = torch.randn(2, 2)
    old = save(tmp_path / "old.pth", {"a": weight, "b": weight})
    new = save(tmp_path / "new.pth", {"b": weight, "a": weight})
    assert ckptool.diff(old, new).verdict == "identical"


def test_each_file_may_keep_another_name_of_a_tie(tmp_path):
    weight = torch.randn(2, 2)
    metadata = {"ckptool.ties": '{"b": "a"}'}
    save_file({"a": weight, "c": weight.clone()}, tmp_path / "a.safetensors", metadata=metadata)
    save_file({"b": weight, "c": weight.clone()}, tmp_path / "b.safetensors")
    for old, new in (("a", "b"), ("b", "a")):
        report = ckptool.diff(tmp_path / f"{old}.safetensors", tmp_path / f"{new}.safetensors")
        assert (report.verdict, report.exit_code) == ("compatible", 1)
        assert (report.added_keys, report.removed_keys, report.changed_keys) == ((), (), ())
    different = tmp_path / "different.safetensors"
    save_file({"b": weight + 1, "c": weight}, different)
    assert ckptool.diff(tmp_path / "a.safetensors", different).verdict == "values differ"


def test_what_save_model_leaves_out_is_in_the_digest_and_the_format_is_not(tmp_path):
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    plain = save(tmp_path / "plain.pth", module.state_dict())
    save_model(module, tmp_path / "model.safetensors", metadata={"format": "pt"})
    state = {"pt": torch.ones(2)}
    save_file(state, tmp_path / "pt.safetensors", metadata={"format": "pt"})
    paths = [plain, tmp_path / "model.safetensors", save(tmp_path / "pt.pth", state)]
    digests = [c.digest for c in ckptool.digest([*paths, tmp_path / "pt.safetensors"]).checkpoints]
    assert digests[0] == digests[1]
    assert digests[2] == digests[3]


@pytest.mark.parametrize("with_module", [True, False])
@TIED
@pytest.mark.parametrize("new", ["plain", "nested", "safetensors", "safetensors shards", "DCP"])
@pytest.mark.parametrize("old", ["plain", "safetensors", "safetensors shards", "DCP"])
def test_gate_against_the_same_state_in_another_container(old, new, tied, with_module):
    report = ckptool.gate(
        [write_source(new, tied)],
        module=f"{MODULES}:{UNSAVED_CLASSES[tied].__name__}" if with_module else None,
        against=write_source(old, tied),
        config=ProjectConfig(),
    )
    errors = {f.code: f.key for f in report.findings if f.level == "error"}
    if is_unproved_tie(old, new, tied) and not with_module:
        code = "CK802" if SOURCES[old].stores_one_name else "CK801"
        assert errors == {code: "head.weight"}
    else:
        assert errors == {}


def test_gate_of_safetensors_against_the_lock_of_a_tied_module(tmp_path):
    module = f"{MODULES}:{UNSAVED_CLASSES[True].__name__}"
    ckptool.lock(module=module, output=tmp_path / "model.lock", config=ProjectConfig())
    for name in ("safetensors", "safetensors shards"):
        report = ckptool.gate(
            [write_source(name, True)], against=tmp_path / "model.lock", config=ProjectConfig()
        )
        assert [f.code for f in report.findings if f.level == "error"] == []

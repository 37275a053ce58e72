"""What a newcomer meets on the first day: other people's files, wrong words, a notebook."""

import datetime as dt
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from files import save
from safetensors.torch import save_file
from torch import nn

import ckptool
from ckptool.errors import CkptoolError
from ckptool.formats import open_checkpoint

LINEAR = nn.Linear(2, 3)


def error_message(call) -> str:
    with pytest.raises(CkptoolError) as caught:
        call()
    return str(caught.value)


def said(path: Path) -> str:
    (error,) = ckptool.inspect(path).errors
    return error.removeprefix(f"{path}: ")


def folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        if name.endswith(".safetensors"):
            save_file(LINEAR.state_dict(), path / name, {"format": "pt"})
        else:
            torch.save(LINEAR.state_dict(), path / name)
    return path


def test_a_folder_of_a_trainer_is_its_weights_and_the_rest_is_named(tmp_path):
    run = folder(tmp_path / "checkpoint-4", "model.safetensors", "optimizer.pt", "rng_state.pth")
    report = ckptool.inspect(run)
    assert report.checkpoints[0].path == str(run / "model.safetensors")
    assert [(s.what, s.reason) for s in report.skipped] == [
        ("next to the weights: 'optimizer.pt', 'rng_state.pth'", "give their paths to read them")
    ]
    assert ckptool.diff(run, module=LINEAR).verdict == "loads strictly"


def test_a_folder_with_one_checkpoint_is_that_one(tmp_path):
    run = folder(tmp_path / "run", "epoch=1.ckpt")
    assert ckptool.inspect(run).checkpoints[0].path == str(run / "epoch=1.ckpt")


def test_a_folder_with_the_weights_twice_is_read_as_from_pretrained_reads_it(tmp_path):
    run = folder(tmp_path / "run", "model.safetensors", "pytorch_model.bin")
    checkpoint = open_checkpoint(run)
    assert checkpoint.container == "safetensors"
    assert any("pytorch_model.bin" in skipped.what for skipped in checkpoint.skipped)


def test_a_list_of_numpy_arrays_has_no_tensors(tmp_path):
    arrays = [value.numpy() for value in LINEAR.state_dict().values()]
    words = (
        "contains no tensors, but 2 NumPy arrays: torch.save them as torch.from_numpy(...) of each"
    )
    assert said(save(tmp_path / "a.pth", arrays)) == words
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"model": arrays}))
    assert said(tmp_path / "b.pkl") == f"a pickle that {words}"


def test_what_has_no_tensors_is_named(tmp_path):
    steps = {"base_lrs": [1], "last_epoch": 4, "verbose": False, "_step_count": 5}
    assert said(save(tmp_path / "scheduler.pt", steps)) == (
        "contains no tensors, but a dict with `base_lrs`, `last_epoch`, `verbose` and 1 more"
    )


def test_archives_that_are_no_checkpoints_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    assert "NumPy archive (.npz)" in said(tmp_path / "a.npz")
    model = save(tmp_path / "model.pth", LINEAR.state_dict())
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.write(model, "model.pth")
    assert said(tmp_path / "m.zip") == "is a zip archive with 'model.pth' inside: unpack it first"
    with torch.package.PackageExporter(tmp_path / "p.pt") as package:
        package.extern("torch.**")
        package.save_pickle("model", "model.pkl", LINEAR)
    assert "is a torch.package archive" in said(tmp_path / "p.pt")


def test_the_refusal_of_a_server_is_no_index(tmp_path):
    (tmp_path / "m.pth").write_text('{"error": "Repository not found"}')
    assert said(tmp_path / "m.pth") == (
        "is a server's answer to a download ('Repository not found'), not the file"
    )


def test_a_pipe_is_told_of_the_dash(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert said(tmp_path / "pipe") == "is a named pipe, not a file; `-` reads standard input"


@pytest.mark.parametrize("place", ["lr", "hyper_parameters.lr"])
def test_a_change_within_plain_data_is_a_difference(tmp_path, place):
    def content(value: float) -> dict[str, object]:
        inner: object = value
        for name in reversed(place.split(".")):
            inner = {name: inner}
        return {"config": inner, "seen": float("nan"), "state_dict": LINEAR.state_dict()}

    old = save(tmp_path / "old.pth", content(0.1))
    assert ckptool.diff(old, save(tmp_path / "same.pth", content(0.1))).verdict == "identical"
    report = ckptool.diff(old, save(tmp_path / "new.pth", content(0.2)))
    assert (report.verdict, report.changed_entries) == ("plain data differs", ("config",))


def test_small_settings_are_shown(tmp_path):
    path = save(
        tmp_path / "m.pth", {"hparams": {"lr": 0.1, "layers": [1, 2]}, "w": {"a": torch.ones(1)}}
    )
    (entry,) = ckptool.inspect(path).checkpoints[0].entries
    assert entry.text == "{lr: 0.1, layers: [1, 2]}"


def test_a_pickle_of_three_classes_of_one_missing_package_is_one_finding(tmp_path):
    names = ("Gone", "Lost", "Away")
    module = nn.Sequential(
        *(type(name, (nn.Linear,), {"__module__": "gone.nets"})(1, 1) for name in names)
    )
    package = type(nn)("gone.nets")
    for one in module:
        setattr(package, type(one).__name__, type(one))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gone", type(nn)("gone"))
        patch.setitem(sys.modules, "gone.nets", package)
        path = save(tmp_path / "m.pth", module)
    found = [f for f in ckptool.inspect(path).findings if f.code == "CK303"]
    assert [f.message for f in found] == [
        "the file needs the class gone.nets.Away and 2 more of gone, which cannot be imported here"
    ]
    assert "Run it where gone can be imported" in found[0].fix


def test_findings_with_one_fix_say_it_once(tmp_path):
    path = save(tmp_path / "m.pth", nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Dropout()))
    text = ckptool.text(ckptool.inspect(path))
    assert text.count("- CK301 (warning)") == 4
    assert text.count("fix: ") == 1


def test_what_torch_always_writes_is_not_repeated(tmp_path):
    report = ckptool.inspect(save(tmp_path / "m.pth", LINEAR.state_dict()))
    assert "serialization_id" not in ckptool.text(report)
    assert ".data/serialization_id" in report.checkpoints[0].metadata


def test_a_prefix_is_not_a_row_for_each_key(tmp_path):
    net = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    path = save(tmp_path / "m.pth", {f"module.{k}": v for k, v in net.state_dict().items()})
    report = ckptool.diff(path, module=net)
    assert "Keys that do not match: 16, as CK209 explains (-v shows all)" in ckptool.text(report)
    assert len(report.verdicts) == 16


def test_a_warning_about_the_file_does_not_stop_it_from_loading(tmp_path):
    path = save(tmp_path / "m.pth", {"model": LINEAR.state_dict(), "when": dt.date(2026, 1, 1)})
    report = ckptool.diff(path, module=LINEAR)
    assert ([f.code for f in report.findings], report.verdict) == (["CK301"], "loads strictly")


def test_a_live_module_in_the_place_of_a_path(tmp_path):
    path = save(tmp_path / "m.pth", LINEAR.state_dict())
    assert ckptool.diff(path, LINEAR).exit_code == 0
    assert error_message(lambda: ckptool.diff(LINEAR.state_dict(), module=LINEAR)).startswith(
        "diff of an OrderedDict needs a second argument"
    )
    assert ckptool.diff(LINEAR.state_dict(), LINEAR).exit_code == 0
    assert error_message(lambda: ckptool.inspect("")) == "the path of a checkpoint is empty"


def test_a_class_or_a_state_dict_in_the_place_of_a_module(tmp_path):
    path = save(tmp_path / "m.pth", LINEAR.state_dict())
    assert error_message(lambda: ckptool.audit(nn.Linear)).startswith(
        "torch.nn.modules.linear:Linear: missing a required argument: 'in_features': "
        "add -k in_features=<int> -k out_features=<int>"
    )
    assert error_message(lambda: ckptool.diff(path, module=LINEAR.state_dict())) == (
        "module= is a OrderedDict: give a module, its class, a function that returns one, or a "
        "name such as 'package.module:Name'"
    )


def test_a_misspelled_argument_of_the_constructor():
    kwargs = {"in_features": 2, "out_featurs": 3}
    words = error_message(lambda: ckptool.audit("torch.nn:Linear", kwargs=kwargs))
    assert "got an unexpected keyword argument 'out_featurs'; did you mean 'out_features'?" in words


def test_a_file_that_does_not_exist_in_the_place_of_a_module():
    words = error_message(lambda: ckptool.audit("attention.py:Missing"))
    assert words == "attention.py:Missing: there is no file attention.py"


def test_a_rule_by_its_name():
    assert [one.code for one in ckptool.rule("missing-parameter")] == ["CK201"]
    words = error_message(lambda: ckptool.rule("missing-paramter"))
    assert "did you mean missing-parameter?" in words


def test_a_notebook_completes_the_functions():
    assert {"audit", "diff", "inspect", "text", "watch"} <= set(dir(ckptool))


def test_a_narrow_terminal_cuts_no_number(tmp_path):
    net = nn.Sequential(nn.Linear(70, 70), nn.Linear(70, 3))
    text = ckptool.text(ckptool.inspect(save(tmp_path / "m.pth", net.state_dict())), width=40)
    assert "19.1 KiB" in text
    assert "...iB" not in text


def test_a_long_place_does_not_widen_the_title(tmp_path):
    place = "EarlyStopping " * 8
    path = save(tmp_path / "m.pth", {"callbacks": {place: {"best": torch.ones(1)}}})
    text = ckptool.text(ckptool.inspect(path), width=60)
    assert max(map(len, text.partition("\n\n")[2].splitlines())) <= 60


def test_a_report_as_text():
    report = ckptool.audit(LINEAR)
    assert ckptool.text(report).startswith("the state_dict contains everything")
    assert ckptool.text(report, "json").startswith("{")
    assert error_message(lambda: ckptool.text(report, "tabel")).startswith(
        "no format is called 'tabel'"
    )


class _Irrep(tuple):
    """As e3nn's: a tuple that refuses to tell its length."""

    __slots__ = ()

    def __len__(self) -> int:
        raise NotImplementedError


class _Equivariant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.irrep = _Irrep((1, torch.ones(2)))


def test_a_tuple_without_a_length_is_looked_through():
    report = ckptool.audit(_Equivariant())
    assert [one.key for one in report.unsaved] == ["irrep[1]"]

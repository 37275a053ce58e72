"""Files that other tools write, and archives packed by hand: each is named for what it is."""

import collections
import pathlib
import pickle
import re
import shlex
import shutil
import subprocess
import zipfile
import zlib

import pytest
import torch
from rules.cases_known_files import Reduced, pack_again
from torch import nn

import ckptool
from ckptool.errors import ReadError, UnknownFormatError
from ckptool.formats import open_checkpoint
from ckptool.model import Container

PIECE = b"<unk>\x15\0\0\0\0"
FOREIGN = {
    "SentencePiece": b"\n\x0e\n\x05" + PIECE + b"\x18\x02" + b"\n\x0e\n\x05" + PIECE + b"\x18\x02",
    "CTranslate2": b"\x06\0\0\0\x10\0TransformerSpec\0\x01\0\0\0",
    "TensorFlow Lite": b"\x1c\0\0\0TFL3" + bytes(32),
    "ExecuTorch": b"\x30\0\0\0ET12eh00" + bytes(32),
    "ncnn model (.param)": b"7767517\n75 83\nInput data 0 1 data 0=227\n",
    "ncnn model (.param.bin)": b"\xdd\x85\x76\0\x4b\0\0\0",
    "ncnn model in float16": b"\x47\x6b\x30\x01" + bytes(32),
    "ncnn model in int8": b"\x38\x4b\x0d\0" + bytes(32),
    "MXNet": b"\x12\x01\0\0\0\0\0\0" + bytes(16),
    "TensorRT": b"ptrt" + bytes(32),
    "fastText": b"\xba\x16\x4f\x2f\x0c\0\0\0",
    "RKNN": b"RKNN" + bytes(32),
    "zlib": zlib.compress(pickle.dumps({"w": 1}), 3),
}
"""What the message says -> how such a file begins."""


@pytest.mark.parametrize("words", FOREIGN)
def test_a_file_of_another_tool_is_named(tmp_path, words):
    path = tmp_path / "model.bin"
    path.write_bytes(FOREIGN[words])
    with pytest.raises(Exception):  # noqa: B017 (torch raises what its first reader meets)
        torch.load(path, weights_only=False)
    with pytest.raises(UnknownFormatError, match=re.escape(words)):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["layer.pth", "pad.pth"])
def test_a_checkpoint_is_not_taken_for_one(tmp_path, name):
    torch.save({"<unk>": torch.ones(2)}, tmp_path / name)
    assert open_checkpoint(tmp_path / name).container is Container.TORCH_ZIP


def save_linear(path):
    torch.save(nn.Linear(40, 30).state_dict(), path)
    return path


@pytest.mark.process
@pytest.mark.skipif(shutil.which("zip") is None, reason="the command is of Info-ZIP")
def test_an_unpacked_archive_is_packed_as_the_message_says(tmp_path):
    with zipfile.ZipFile(save_linear(tmp_path / "model.pth")) as archive:
        archive.extractall(tmp_path / "un packed")
    folder = tmp_path / "un packed" / "model"
    with pytest.raises(UnknownFormatError, match="unpacked") as error:
        open_checkpoint(folder)
    command = str(error.value).rpartition(": ")[2]
    subprocess.run(shlex.split(command), cwd=folder.parent, check=True)
    packed = torch.load(folder.parent / "model.pth", mmap=True)
    assert torch.equal(packed["weight"], torch.load(tmp_path / "model.pth")["weight"])
    with pytest.raises(ReadError, match="one record of an archive"):
        open_checkpoint(folder / "data.pkl")


def test_a_compressed_archive_is_noise_under_mmap(tmp_path):
    saved, packed = save_linear(tmp_path / "saved.pth"), tmp_path / "packed.pth"
    pack_again(saved, packed, zipfile.ZIP_DEFLATED)
    expected = torch.load(saved)["weight"]
    assert torch.equal(torch.load(packed)["weight"], expected)
    mapped = torch.load(packed, mmap=True)["weight"]
    assert not torch.equal(mapped.nan_to_num(), expected)  # and nothing was raised
    assert {f.code for f in ckptool.inspect(packed).findings} == {"CK322"}
    ckptool.migrate(packed, tmp_path / "new.pth")
    assert torch.equal(torch.load(tmp_path / "new.pth", mmap=True)["weight"], expected)


def edit_archive(source, target, edit):
    """Write the records of an archive again as `edit(name, data)` gives them, without None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if (entry := edit(name, old.read(name))) is not None:
                new.writestr(*entry)
    return target


def set_version(version):
    def edit(name, data):
        is_version = name.endswith("/version")
        return None if is_version and version is None else (name, version if is_version else data)

    return edit


LAYOUTS = {
    "flat": lambda name, data: (name.partition("/")[2], data),
    "deep": lambda name, data: (f"ckpts/{name}", data),
    "version 11": set_version(b"11\n"),
    "version 0": set_version(b"0\n"),
    "version of letters": set_version(b"three"),
    "no version": set_version(None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_archive_that_torch_refuses_is_repaired(tmp_path, layout):
    saved = save_linear(tmp_path / "saved.pth")
    packed = edit_archive(saved, tmp_path / "packed.pth", LAYOUTS[layout])
    with pytest.raises(RuntimeError):
        torch.load(packed)
    assert {f.code for f in ckptool.inspect(packed).findings} == {"CK313"}
    ckptool.migrate(packed, tmp_path / "new.pth")
    assert torch.equal(torch.load(tmp_path / "new.pth")["weight"], torch.load(saved)["weight"])


def test_an_archive_of_macos_is_repaired(tmp_path):
    saved, packed = save_linear(tmp_path / "saved.pth"), tmp_path / "packed.pth"
    pack_again(saved, packed, zipfile.ZIP_STORED)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("__MACOSX/._saved", b"x")
    with pytest.raises(RuntimeError):
        torch.load(packed)
    assert "CK313" in {f.code for f in ckptool.inspect(packed).findings}
    report = ckptool.migrate(packed, tmp_path / "new.pth")
    assert report.verdict == "converted"
    assert torch.equal(torch.load(tmp_path / "new.pth")["weight"], torch.load(saved)["weight"])


def test_a_script_of_torch_1_4_has_six_elements_in_its_persistent_ids(tmp_path):
    """They end in None, for no view of the storage; torch.jit.load does not look there."""
    torch.jit.script(nn.Linear(2, 3)).save(tmp_path / "new.pt")

    def add_view(name, data):
        return name, data.replace(b"tQ", b"NtQ") if name.endswith("data.pkl") else data

    old = edit_archive(tmp_path / "new.pt", tmp_path / "old.pt", add_view)
    expected = torch.jit.load(old).state_dict()
    (state,) = open_checkpoint(old).states
    assert {key: t.shape for key, t in state.tensors.items()} == {
        key: tuple(tensor.shape) for key, tensor in expected.items()
    }


@pytest.mark.filterwarnings("ignore")
def test_a_torch_package_with_a_script_is_named(tmp_path, monkeypatch):
    from torch.package import PackageExporter, PackageImporter, package_exporter

    monkeypatch.setattr(package_exporter, "_gate_torchscript_serialization", False, raising=False)
    path = tmp_path / "package.pt"
    with PackageExporter(path) as exporter:
        exporter.save_pickle("model", "model.pkl", torch.jit.script(nn.Linear(3, 4)))
    loaded = PackageImporter(path).load_pickle("model", "model.pkl")
    assert isinstance(loaded, torch.jit.ScriptModule)
    with pytest.raises(UnknownFormatError, match=re.escape("PackageImporter")):
        open_checkpoint(path)


def test_a_torch_package_that_runs_a_process_is_reported(tmp_path):
    path = tmp_path / "package.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/.data/extern_modules", b"os\n")
        archive.writestr("package/model/model.pkl", b"\x80\x02cos\nsystem\nX\x01\0\0\0x\x85R.")
    assert "os.system" in {f.key for f in ckptool.inspect(path).findings}


def test_pickle_dump_is_no_file_of_torch_save(tmp_path):
    path, module = tmp_path / "model.pkl", nn.Linear(2, 2)
    path.write_bytes(pickle.dumps(module.state_dict()))
    for weights_only in (True, False):
        with pytest.raises(Exception):  # noqa: B017
            torch.load(path, weights_only=weights_only)
    report = ckptool.diff(path, module=module)
    assert report.verdict.startswith(
        "does not load: torch.load refuses the file: it was written by pickle.dump"
    )
    assert "ask who made it" not in " ".join(f.fix for f in report.findings)


def test_a_pickle_of_protocol_2_says_what_reads_it(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(nn.Linear(2, 2).state_dict(), protocol=2))
    (fix,) = {f.fix for f in ckptool.inspect(path).findings if f.code == "CK301"}
    assert "pickle.load" in fix
    assert "ckptool migrate" not in fix
    assert {*pickle.loads(path.read_bytes())} == {"weight", "bias"}


@pytest.mark.parametrize("content", ["state", "arrays", "both"])
def test_joblib_dump_is_named(tmp_path, content):
    joblib = pytest.importorskip("joblib")
    numpy = pytest.importorskip("numpy")
    state = dict(nn.Linear(2, 2).state_dict()) if content != "arrays" else {}
    arrays = {"mean": numpy.ones((3, 3))} if content != "state" else {}
    joblib.dump(state | arrays, tmp_path / "model.joblib")
    with pytest.raises(Exception):  # noqa: B017
        torch.load(tmp_path / "model.joblib", weights_only=False)
    checkpoint = open_checkpoint(tmp_path / "model.joblib")
    assert "joblib.dump" in checkpoint.load_refusal
    assert checkpoint.states[0].tensors.keys() == {*state, *arrays}


def test_a_path_of_another_system_is_read_as_the_fix_says(tmp_path):
    """Truth: torch.load cannot make a WindowsPath here, or a PosixPath on Windows."""
    content = {
        "model": nn.Linear(2, 2).state_dict(),
        "data": Reduced(pathlib.WindowsPath, "D:\\runs", "best.pt"),
        "project": Reduced(pathlib.PosixPath, "/", "home", "runs"),
    }
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(NotImplementedError):
        torch.load(tmp_path / "model.pth", weights_only=False)
    findings = [f for f in ckptool.inspect(tmp_path / "model.pth").findings if f.code == "CK301"]
    allowed = torch.serialization.get_safe_globals()
    try:
        for finding in findings:
            code = finding.fix[finding.fix.index("torch.serialization") :]
            exec(code, {"torch": torch, "pathlib": pathlib})
        loaded = torch.load(tmp_path / "model.pth", weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)
    assert str(loaded["data"]) == "D:\\runs\\best.pt"
    assert str(loaded["project"]) == "/home/runs"


@pytest.mark.parametrize("place", ["", "net"])
def test_a_method_that_was_not_called_is_named(tmp_path, place):
    module = nn.Linear(2, 2)
    content = {place: module.state_dict} if place else module.state_dict
    torch.save(content, tmp_path / "model.pth")
    loaded = torch.load(tmp_path / "model.pth", weights_only=False)
    assert callable(loaded[place] if place else loaded)
    (fix,) = {f.fix for f in ckptool.inspect(tmp_path / "model.pth").findings if "getattr" in f.key}
    assert fix.startswith("The parentheses are missing")
    command = shlex.split(fix[fix.index("ckptool") :])
    ckptool.migrate(
        command[2],
        tmp_path / "new.safetensors",
        at=command[command.index("--at") + 1],
        drop_extra=True,
    )
    assert ckptool.diff(tmp_path / "new.safetensors", module=module).verdict == "loads strictly"


def test_an_optimizer_that_is_none_is_no_training_state(tmp_path):
    content = {"module": nn.Linear(2, 2).state_dict(), "optimizer": None, "lr_schedulers": []}
    torch.save(content, tmp_path / "model.pth")
    assert not ckptool.inspect(tmp_path / "model.pth").findings
    torch.save({**content, "optimizer": {"state": {}, "lr": 1}}, tmp_path / "model.pth")
    assert [f.code for f in ckptool.inspect(tmp_path / "model.pth").findings] == ["CK309"]


class Averaged(nn.Module):
    """A module with a layer of AveragedModel's own prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)


@pytest.mark.parametrize("make", [Averaged, lambda: nn.Sequential(nn.Linear(2, 3))])
def test_the_counter_of_an_averaged_model_is_left_out(tmp_path, make):
    module = make()
    average = torch.optim.swa_utils.AveragedModel(module, use_buffers=True)
    average.update_parameters(module)
    torch.save(average.state_dict(), tmp_path / "swa.pth")
    report = ckptool.diff(tmp_path / "swa.pth", module=module)
    assert {f.code for f in report.findings if f.level != "note"} <= {"CK209", "CK210"}
    fix = next(f.fix for f in report.findings if f.code == "CK209")
    names = {"state_dict": torch.load(tmp_path / "swa.pth"), "collections": collections}
    exec(fix[fix.index("state_dict = ") :], names)
    make().load_state_dict(names["state_dict"], strict=True)
    ckptool.migrate(tmp_path / "swa.pth", tmp_path / "new.pth", module=module)
    make().load_state_dict(torch.load(tmp_path / "new.pth"), strict=True)


def test_a_batch_norm_of_before_0_4_1_loads_as_torch_says(tmp_path):
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    state = {k: v for k, v in module.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")
    module.load_state_dict(torch.load(tmp_path / "old.pth"), strict=True)
    report = ckptool.diff(tmp_path / "old.pth", module=module)
    assert report.verdict == "loads strictly, by the module's own upgrade of 1 key"
    assert report.exit_code == 0


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_dcp_names_its_folder(tmp_path):
    from torch.distributed import checkpoint as dcp

    dcp.save({"w": torch.ones(2)}, checkpoint_id=tmp_path / "run")
    with pytest.raises(
        UnknownFormatError,
        match=r"one file of a torch\.distributed\.checkpoint folder: give the folder, which has",
    ):
        open_checkpoint(tmp_path / "run" / "__0_0.distcp")


def test_a_list_of_an_ema_migrates_as_the_fix_says(tmp_path, run_command):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef Net():\n"
        "    return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))"
        " for _ in range(3)))\n"
    )
    layers = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3)]
    shadow = [parameter.detach() for parameter in nn.Sequential(*layers).parameters()]
    torch.save({"ema": {"decay": 0.9, "shadow_params": shadow}}, tmp_path / "ema.pth")
    found = run_command("diff", "ema.pth", "-m", "net:Net", "--format", "json", cwd=tmp_path)
    import json

    findings = json.loads(found.out)["findings"]
    fix = next(f["fix"] for f in findings if f["code"] == "CK202")
    done = run_command(*shlex.split(fix[fix.index("ckptool") :])[1:], cwd=tmp_path)
    assert done.code == 0, done.err
    module = nn.Sequential(*layers)
    target = fix[fix.index("-o ") + 3 :].split()[0]
    saved = torch.load(tmp_path / target)["ema"]["shadow_params"]
    module.load_state_dict(saved, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), shadow, strict=True))

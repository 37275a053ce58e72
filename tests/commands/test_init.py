"""`ckptool init` writes a configuration with which the commands find the right module."""

import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptool as package
from ckptool.modules.target.class_search import find_modules

NET = """
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import Module

@dataclass
class Cfg:
    d: int = 3

class Helper:
    pass

class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.fc = nn.Linear(d, d)

class Net(Module):
    def __init__(self, cfg: Cfg):
        super().__init__()
        self.b = Block(cfg.d)
        self.register_buffer("mask", torch.ones(cfg.d, cfg.d).tril())

class Sized(nn.Module):
    def __init__(self, d, *, bias=True):
        super().__init__()
        self.l = nn.Linear(d, 2, bias=bias)

class Small(nn.Conv1d):
    def __init__(self):
        super().__init__(2, 3, 3)

class Fails(nn.Module):
    def __init__(self):
        raise ValueError("never")
"""
RUNS = """
import torch
from net import Net
class Trainer(Net):
    pass
for step in range(3):
    open("ran", "w").write(str(step))
"""
GUARDED = """
import argparse
from net import Small
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
class Guarded(Small):
    def __init__(self):
        super().__init__()
        self.register_buffer("extra", __import__("torch").ones(2))
if __name__ == "__main__":
    raise SystemExit(1)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "train.py").write_text(RUNS)
    (tmp_path / "guarded.py").write_text(GUARDED)
    (tmp_path / "broken.py").write_text("class (")
    (tmp_path / "runs").mkdir()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "lib.py").write_text("from torch import nn\nclass Lib(nn.Module): pass\n")
    torch.save(nn.Conv1d(2, 3, 3).state_dict(), tmp_path / "runs" / "s1.pth")
    torch.save(nn.Conv1d(2, 3, 3).state_dict(), tmp_path / "runs" / "s2.pth")
    block = nn.Linear(5, 5).state_dict(prefix="b.fc.")
    state = {**block, "mask": torch.ones(5, 5).tril()}
    torch.save({"model": state, "cfg": {"d": 5}}, tmp_path / "net.pt")
    torch.save({"model": block, "cfg": {"d": 5}}, tmp_path / "old.ckpt")
    sized = nn.Linear(4, 2, bias=False).state_dict(prefix="l.")
    arguments = {"d": 4, "bias": False, "lr": 0.1}
    torch.save({"state_dict": sized, "hyper_parameters": arguments}, tmp_path / "lit.ckpt")
    torch.save({"z": torch.ones(3)}, tmp_path / "other.pth")
    (tmp_path / "notes.bin").write_bytes(b"no checkpoint")
    monkeypatch.chdir(tmp_path)
    return tmp_path


EXPECTED = {
    "net.pt": ("net.py:Net", {"cfg": {"d": 5}}),
    "old.ckpt": ("net.py:Net", {"cfg": {"d": 5}}),
    "lit.ckpt": ("net.py:Sized", {"d": 4, "bias": False}),
    "runs/s1.pth": ("net.py:Small", {}),
    "runs/s2.pth": ("net.py:Small", {}),
}


@pytest.mark.parametrize("has_pyproject", [False, True])
def test_every_checkpoint_gets_its_module(has_pyproject: bool, project: Path):
    before = '[project]\nname = "x"\nversion = "1"'
    if has_pyproject:
        (project / "pyproject.toml").write_text(before)
    report = package.init()
    file = project / ("pyproject.toml" if has_pyproject else "ckptool.toml")
    document = tomllib.loads(file.read_text())
    models = (document["tool"]["ckptool"] if has_pyproject else document)["models"]
    assert file.read_text().startswith(before if has_pyproject else "[[models]]")
    found = {entry["path"]: (entry["module"], entry.get("kwargs", {})) for entry in models}
    assert found == {
        "runs/*.pth": EXPECTED["runs/s1.pth"],
        **{path: value for path, value in EXPECTED.items() if "/" not in path},
    }
    assert {m.path: m.module for m in report.models if m.module} == {
        path: module for path, (module, _) in EXPECTED.items()
    }
    assert report.exit_code == 0
    assert not (project / "ran").exists()
    # What the commands then say, without an option.
    for path in EXPECTED:
        diff = package.diff(path)
        assert (diff.verdict == "loads strictly") is (path != "old.ckpt")
    assert {m.module for m in package.audit().modules} == {m for m, _ in EXPECTED.values()}
    with pytest.raises(package.CkptoolError, match="already: edit it"):
        package.init()


def test_what_is_assumed_and_what_was_not_looked_at_is_said(project: Path):
    report = package.init(dry_run=True)
    outcomes = {model.path: model.outcome for model in report.models}
    assert outcomes["old.ckpt"] == "assumed: 2 of 3 keys match"
    assert '# assumed: 2 of 3 keys match\n[[models]]\npath = "old.ckpt"' in report.text
    assert outcomes["other.pth"] == (
        "no module of the project fits its keys and shapes; not compared with 2 modules whose "
        "arguments are not in it: add an entry with kwargs"
    )
    skipped = {entry.what: entry.reason for entry in report.skipped}
    assert "runs code outside of functions" in skipped["train.py:Trainer"]
    assert "never" in skipped["net.py:Fails"]
    assert any(what.startswith("broken.py") for what in skipped)
    assert not (project / "ckptool.toml").exists()


def test_a_module_without_its_arguments_is_not_said_not_to_fit(tmp_path, monkeypatch):
    """It said of a file whose module was built with the arguments of another that none fits."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(width, width)\n"
    )
    state = {f"fc.{key}": tensor for key, tensor in nn.Linear(4, 4).state_dict().items()}
    lightning = {"state_dict": state, "hyper_parameters": {"width": 4}}
    torch.save(lightning | {"pytorch-lightning_version": "2.5.0"}, tmp_path / "a.ckpt")
    torch.save(state, tmp_path / "b.pth")
    monkeypatch.chdir(tmp_path)
    outcomes = {model.path: model.outcome for model in package.init(dry_run=True).models}
    assert outcomes["a.ckpt"] == "loads strictly"
    assert package.diff("b.pth", module="net.py:Net", kwargs={"width": 4}).exit_code == 0
    assert outcomes["b.pth"] == (
        "not compared with 1 module whose arguments are not in it: add an entry with kwargs"
    )


def test_two_files_with_a_class_of_one_name(tmp_path, monkeypatch):
    source = "from torch import nn\n\n\nclass Net(nn.Linear):\n    pass\n"
    (tmp_path / "a_script.py").write_text(f"{source}\nfor _ in range(1): Net(2, 3)\n")
    (tmp_path / "net.py").write_text(
        source.replace("    pass", "    def __init__(self): super().__init__(2, 3)")
    )
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "plain.pth")
    torch.save(nn.DataParallel(nn.Linear(2, 3)).state_dict(), tmp_path / "wrapped.pth")
    monkeypatch.chdir(tmp_path)
    report = package.init(dry_run=True)
    outcomes = {model.path: (model.module, model.outcome) for model in report.models}
    assert outcomes["plain.pth"] == ("net.py:Net", "loads strictly")
    text = "assumed: 0 of 2 keys match, 2 without the prefix of a wrapper"
    assert outcomes["wrapped.pth"] == ("net.py:Net", text)


def test_nothing_is_said_of_modules_that_were_not_built(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(
        "from torch import nn\n\nclass Net(nn.Linear):\n    pass\n\nfor _ in [0]: Net(2, 3)\n"
    )
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "plain.pth")
    monkeypatch.chdir(tmp_path)
    report = package.init(dry_run=True)
    assert report.verdict == "nothing was written: no module of the project could be built"
    assert report.models[0].outcome.startswith("not compared")
    assert report.skipped[0].what == "train.py:Net"


@pytest.mark.parametrize("names", [(), ("net.py",), ("net.pt",)])
def test_nothing_is_written_for_nothing(names, project: Path, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for name in names:
        (empty / name).write_bytes((project / name).read_bytes())
    report = package.init(empty)
    assert report.exit_code == 1
    assert report.verdict.startswith("nothing was written")
    assert {path.name for path in empty.iterdir()} - {"__pycache__"} == {*names}


@pytest.mark.parametrize(
    "text", ["[tool.ckptool]\n", "[[tool.ckptool.models]]\npath='a'\nmodule='b:C'\n", "tool = {}\n"]
)
def test_a_file_that_cannot_take_it_stays_as_it_is(text: str, project: Path):
    (project / "pyproject.toml").write_text(text)
    with pytest.raises(package.CkptoolError, match=r"already|cannot be added"):
        package.init()
    assert (project / "pyproject.toml").read_text() == text


def test_two_classes_that_fit_are_both_named(project: Path):
    (project / "twin.py").write_text(
        "from torch import nn\nclass Twin(nn.Conv1d):\n"
        "    def __init__(self): super().__init__(2, 3, 3)\n"
    )
    outcomes = {model.path: model.outcome for model in package.init(dry_run=True).models}
    assert outcomes["runs/s1.pth"] == "loads strictly; twin.py:Twin would as well"


def test_the_command_writes_it(project: Path, run_command):
    ran = run_command("init", "--dry-run", cwd=project)
    assert ran.code == 0
    assert "would write ckptool.toml: 5 of 6 checkpoints" in ran.out
    assert not (project / "ckptool.toml").exists()
    assert (
        run_command("init", "-q", cwd=project).out.strip()
        == "wrote ckptool.toml: 5 of 6 checkpoints"
    )
    assert run_command("diff", "net.pt", "-q", cwd=project).out.strip() == "loads strictly"


BASES = {
    "nn.Module": True,
    "torch.nn.Module": True,
    "Module": True,
    "nn.Sequential": True,
    "pl.LightningModule": True,
    "PreTrainedModel": True,
    "Parent": True,
    "other.Parent": True,
    "object": False,
    "Exception": False,
    "Dataset": False,
    "": False,
}


@pytest.mark.parametrize("base", BASES)
def test_classes_are_found_by_their_source(base: str, tmp_path: Path):
    (tmp_path / "one.py").write_text(f"raise SystemExit\nclass Net({base}):\n    pass\n")
    (tmp_path / "two.py").write_text("class Parent(nn.Module):\n    pass\n")
    classes, unread = find_modules(tmp_path)
    assert ("one.py:Net" in {found.target for found in classes}) is BASES[base]
    assert unread == ()


MAKERS = """
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        self.fc = nn.Linear(d, n)

def make(d, n=2):
    if d < 1:
        raise ValueError(d)
    net = nn.Sequential(nn.Linear(d, n), nn.ReLU())
    return net

def direct(d=9):
    return Base(d, 9)

def train(d=3):
    net = Base(d, 3)
    open("ran", "w").write("x")
    return net

def other():
    return 3

def _private():
    return Base(1, 1)

READY = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 1))
"""


@pytest.fixture
def makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "makers.py").write_text(MAKERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_entries(folder: Path) -> dict[str, tuple[str, object]]:
    document = tomllib.loads((folder / "ckptool.toml").read_text())
    return {e["path"]: (e["module"], e.get("kwargs")) for e in document["models"]}


def test_factories_and_instances_are_found_and_what_runs_more_is_not_called(makers: Path):
    found, _ = find_modules(makers)
    names = [module.name for module in found]
    assert names == ["Base", "direct", "make", "READY"]
    save = nn.Sequential(nn.Linear(5, 2), nn.ReLU()).state_dict()
    torch.save({"model": save, "config": {"d": 5, "lr": 0.1}}, "made.pth")
    torch.save(nn.Linear(9, 9).state_dict(prefix="fc."), "direct.pt")
    torch.save(nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 1)).state_dict(), "ready.bin")
    report = package.init()
    file = "src/makers.py"
    assert read_entries(makers) == {
        "direct.pt": (f"{file}:direct", None),
        "made.pth": (f"{file}:make", {"d": 5}),
        "ready.bin": (f"{file}:READY", None),
    }
    assert report.exit_code == 0
    assert not (makers / "ran").exists()
    assert {package.diff(n).verdict for n in ("direct.pt", "made.pth", "ready.bin")} == {
        "loads strictly"
    }


@pytest.mark.parametrize("has_other", [True, False])
def test_what_toml_cannot_express_is_taken_from_the_file(has_other: bool, makers: Path):
    """Files of one folder with arguments of their own share an entry."""
    for number in (4, 5 if has_other else 4):
        state = nn.Linear(number, 3).state_dict(prefix="fc.")
        arguments = {"d": number, "n": 3} | ({} if has_other else {"seed": None})
        (makers / "runs").mkdir(exist_ok=True)
        torch.save({"model": state, "model_args": arguments}, f"runs/{number}.pth")
    package.init()
    if has_other:
        assert read_entries(makers) == {"runs/*.pth": ("src/makers.py:Base", "@model_args")}
        assert package.diff("runs/5.pth").verdict == "loads strictly"
    else:
        assert read_entries(makers) == {"runs/4.pth": ("src/makers.py:Base", {"d": 4, "n": 3})}
    assert package.diff("runs/4.pth").verdict == "loads strictly"
    assert package.gate([]).exit_code == 0


def test_none_is_taken_from_the_file(makers: Path):
    (makers / "src" / "opt.py").write_text(
        "from torch import nn\nclass O(nn.Module):\n    def __init__(self, d, act=1):\n"
        "        super().__init__()\n        self.q = nn.Linear(d, 2, bias=act is None)\n"
    )
    state = nn.Linear(4, 2).state_dict(prefix="q.")
    torch.save({"model": state, "model_args": {"d": 4, "act": None}}, "o.pth")
    package.init()
    assert read_entries(makers) == {"o.pth": ("src/opt.py:O", "@model_args")}
    assert package.diff("o.pth").verdict == "loads strictly"


def test_folders_are_one_checkpoint_and_their_config_json_is_read(makers: Path):
    import json

    from safetensors.torch import save_file

    state = nn.Linear(4, 3).state_dict(prefix="fc.")
    shards = makers / "hub" / "own"
    shards.mkdir(parents=True)
    for number, (key, value) in enumerate(state.items()):
        save_file({key: value}, shards / f"model-0000{number + 1}-of-00002.safetensors")
    index = {k: f"model-0000{i + 1}-of-00002.safetensors" for i, k in enumerate(state)}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (shards / "config.json").write_text(json.dumps({"d": 4, "n": 3, "name": "x"}))
    bert = makers / "hub" / "bert"
    bert.mkdir()
    save_file({"x": torch.ones(2)}, bert / "model.safetensors")
    config = {"architectures": ["BertModel"], "model_type": "bert"}
    (bert / "config.json").write_text(json.dumps(config))
    report = package.init()
    outcomes = {model.path: model.outcome for model in report.models}
    assert outcomes == {
        "hub/bert": "no entry needed: config.json says that transformers loads it",
        "hub/own": "loads strictly",
    }
    assert read_entries(makers) == {"hub/own": ("src/makers.py:Base", {"d": 4, "n": 3})}
    assert package.diff("hub/own", loader="torch").verdict == "loads strictly"
    assert package.diff("hub/own").verdict == "loads strictly"


CONFIGURED = """
from dataclasses import dataclass

from torch import nn


@dataclass
class Config:
    d: int = 4


class Net(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.fc = nn.Linear(cfg.d, cfg.d)


class Plain(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.fc = nn.Linear(cfg.d, cfg.d)
"""


def test_a_configuration_object_with_defaults_is_tried(tmp_path, run_command):
    """`init` wrote nothing, and its hint was `kwargs = { cfg = ... }`."""
    (tmp_path / "net.py").write_text(CONFIGURED)
    torch.save({f"fc.{k}": t for k, t in nn.Linear(4, 4).state_dict().items()}, tmp_path / "a.pth")
    report = package.init(tmp_path)
    (model,) = report.models
    assert model.module == "net.py:Net"
    assert model.outcome == "loads strictly, assuming the defaults of `cfg`"
    assert {skipped.what: skipped.reason for skipped in report.skipped} == {
        "net.py:Plain": "not built: give its arguments in an entry, kwargs = { cfg = ... }"
    }
    assert run_command("diff", "a.pth", cwd=tmp_path).code == 0


def test_a_configuration_object_of_another_size_does_not_fit(tmp_path):
    (tmp_path / "net.py").write_text(CONFIGURED)
    torch.save({f"fc.{k}": t for k, t in nn.Linear(9, 9).state_dict().items()}, tmp_path / "a.pth")
    (model,) = package.init(tmp_path).models
    assert model.module == ""

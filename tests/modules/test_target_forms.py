"""Each way to name a module builds what Python itself builds from the same words."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ckptool
from ckptool.errors import ModuleError
from ckptool.model import Constancy, ModuleInfo
from ckptool.modules.describe import examine_module
from ckptool.modules.import_target import ModuleSpec
from ckptool.modules.target.config_objects import build_config_objects

NET = """
from __future__ import annotations
import argparse
from collections import namedtuple
from dataclasses import dataclass, field
from typing import NamedTuple, Optional, TypedDict
import msgspec
import torch
from torch import nn

@dataclass
class Inner:
    width: int = 4

@dataclass
class Config:
    d: int = 3
    inner: Inner = field(default_factory=Inner)
    sizes: tuple[int, ...] = (1,)

class Fields(NamedTuple):
    d: int
    bias: bool = True

class Typed(TypedDict):
    d: int

class Struct(msgspec.Struct):
    d: int
    parts: list[Inner] = []

class Net(nn.Module):
    def __init__(self, cfg: Config, dtype=torch.float32) -> None:
        super().__init__()
        self.l = nn.Linear(cfg.d, cfg.inner.width, dtype=dtype)

class OptionalConfig(Net):
    def __init__(self, cfg: Optional[Config] = None) -> None:
        super().__init__(cfg or Config())

class DefaultConfig(Net):
    def __init__(self, cfg=Config(d=9)) -> None:
        super().__init__(cfg)

class FromFields(nn.Module):
    def __init__(self, cfg: Fields) -> None:
        super().__init__()
        self.l = nn.Linear(cfg.d, 1, bias=cfg.bias)

class FromTyped(nn.Module):
    def __init__(self, cfg: Typed) -> None:
        super().__init__()
        self.l = nn.Linear(cfg["d"], 1)

class FromStruct(nn.Module):
    def __init__(self, cfg: Struct) -> None:
        super().__init__()
        self.l = nn.ModuleList(nn.Linear(cfg.d, part.width) for part in cfg.parts)

class FromArgs(nn.Module):
    def __init__(self, args) -> None:
        super().__init__()
        self.l = nn.Linear(args.d, args.inner.width)

class FromDict(nn.Module):
    def __init__(self, args) -> None:
        super().__init__()
        self.l = nn.Linear(args["d"], 1)

class Outer:
    class Inner(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 5)

REGISTRY = {"gpt": Net, "small": lambda: nn.Linear(1, 1), 3: nn.ReLU}
INSTANCE = nn.Linear(7, 7)

def make(cfg, scale=1):
    return nn.Linear(cfg.d * scale, 2)

def pick(name):
    return REGISTRY[name]
"""


def write_project(folder: Path) -> Path:
    (folder / "models").mkdir()
    (folder / "models" / "net.py").write_text(NET)
    (folder / "models" / "my-net.py").write_text(NET)
    (folder / "models" / "random.py").write_text(NET)
    (folder / "src" / "package" / "deep").mkdir(parents=True)
    (folder / "src" / "package" / "__init__.py").write_text("")
    (folder / "src" / "package" / "deep" / "__init__.py").write_text("from . import sizes\n")
    (folder / "src" / "package" / "deep" / "sizes.py").write_text("D = 6\n")
    (folder / "src" / "package" / "deep" / "net.py").write_text(
        "from torch import nn\nfrom .sizes import D\nfrom package.deep import sizes\n"
        "class Net(nn.Linear):\n    def __init__(self): super().__init__(D, sizes.D)\n"
    )
    (folder / "train.py").write_text(
        "import argparse\nfrom torch import nn\n"
        "parser = argparse.ArgumentParser()\nparser.add_argument('--d', type=int, default=3)\n"
        "args = parser.parse_args()\n"
        "class GPT(nn.Linear):\n    def __init__(self): super().__init__(args.d, 1)\n"
        "if __name__ == '__main__':\n    raise SystemExit('training starts')\n"
    )
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


def shapes(target: str, **kwargs: object) -> dict[str, tuple[int, ...]]:
    module_info = examine(target, kwargs)
    return {key: tuple(tensor.tensor.shape) for key, tensor in module_info.tensors.items()}


def examine(target: str, kwargs: dict[str, object]) -> ModuleInfo:
    return examine_module(ModuleSpec(target, kwargs, (Path.cwd(),)))


def linear(*size: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
    module = torch.nn.Linear(*size)
    return {f"{prefix}{key}": tuple(value.shape) for key, value in module.state_dict().items()}


@pytest.mark.parametrize(
    "file", ["models/net.py", "./models/net.py", "models/my-net.py", "models/random.py"]
)
@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Net(Config(d=3))", linear(3, 4, prefix="l.")),
        ("Net(Config(5, Inner(width=2)), dtype=torch.float16)", linear(5, 2, prefix="l.")),
        ("Net(cfg=Config(sizes=[1, -2], inner=Inner(1)))", linear(3, 1, prefix="l.")),
        ("REGISTRY[gpt](Config())", linear(3, 4, prefix="l.")),
        ('REGISTRY["small"]', linear(1, 1)),
        ("REGISTRY[small]()", linear(1, 1)),
        ("pick('small')", linear(1, 1)),
        ("make(argparse.Namespace(d=2), scale=3)", linear(6, 2)),
        ("make(**dict(cfg=Config(d=4)))", linear(4, 2)),
        ("Outer.Inner", linear(2, 5)),
        ("INSTANCE", linear(7, 7)),
    ],
)
def test_an_expression_in_a_file(project, file, expression, expected):
    assert shapes(f"{file}:{expression}") == expected
    assert sys.modules["random"].__name__ == "random"
    assert hasattr(sys.modules["random"], "shuffle")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("{folder}/models/net.py:Net(Config())", linear(3, 4, prefix="l.")),
        ("src/package/deep/net.py:Net", linear(6, 6)),
        ("{folder}/src/package/deep/net.py:Net", linear(6, 6)),
        ("train.py:GPT", linear(3, 1)),
        ("train:GPT", linear(3, 1)),
        ("models.net:Net(Config())", linear(3, 4, prefix="l.")),
    ],
)
def test_a_file_or_a_module(project, monkeypatch, target, expected):
    monkeypatch.setattr(sys, "argv", ["ckptool", "diff", "--no-such-option-of-the-script"])
    assert shapes(target.format(folder=project)) == expected
    assert sys.argv[0] == "ckptool"


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("Net", {"cfg": {"d": 5}}, linear(5, 4, prefix="l.")),
        ("Net", {"cfg": {"inner": {"width": 2}}}, linear(3, 2, prefix="l.")),
        ("OptionalConfig", {"cfg": {"d": 2}}, linear(2, 4, prefix="l.")),
        ("DefaultConfig", {"cfg": {"d": 2}}, linear(2, 4, prefix="l.")),
        ("DefaultConfig", {}, linear(9, 4, prefix="l.")),
        ("FromFields", {"cfg": {"d": 2}}, linear(2, 1, prefix="l.")),
        ("FromTyped", {"cfg": {"d": 2}}, linear(2, 1, prefix="l.")),
        ("FromStruct", {"cfg": {"d": 2, "parts": [{"width": 3}]}}, linear(2, 3, prefix="l.0.")),
        ("FromArgs", {"args": {"d": 2, "inner": {"width": 3}}}, linear(2, 3, prefix="l.")),
        ("FromDict", {"args": {"d": 2}}, linear(2, 1, prefix="l.")),
    ],
)
def test_a_dict_becomes_the_config_object(project, name, kwargs, expected):
    assert shapes(f"models/net.py:{name}", **kwargs) == expected


@pytest.mark.parametrize(
    ("target", "kwargs", "words"),
    [
        ("models/net.py:Net", {}, "add -k cfg='{}'"),
        ("models/net.py:FromFields", {}, "add -k cfg.d=<value>"),
        ("models/net.py:Net", {"cfg": {"dd": 3}}, "Config has no field 'dd'; did you mean 'd'?"),
        ("models/net.py:Net(Config())", {"d": 3}, "those in the call: remove d"),
        ("models/net.py:Net(Confg())", {}, "has no 'Confg'; did you mean 'Config'?"),
        ("models/net.py:REGISTRY[gpt2]", {}, "REGISTRY has no 'gpt2'; did you mean 'gpt'?"),
        ("models/net.py:make(3)", {}, "'int' object has no attribute 'd'"),
        ("models/none.py:Net", {}, "there is no file models/none.py"),
        ("models/net.py:[Net]", {}, "'[Net]' is not one of Name"),
        ("models/net.py:Net() or Net()", {}, "is not one of Name"),
        ("models/net.py:(lambda: Net())()", {}, "is not one of Name"),
    ],
)  # fmt: skip
def test_one_line_says_what_would_work(project, target, kwargs, words):
    with pytest.raises(ModuleError) as caught:
        ckptool.audit(target, kwargs=kwargs)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_call_is_made_anew_for_each_build(project):
    (project / "counted.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, n):\n"
        "        super().__init__()\n"
        "        self.register_buffer('noise', torch.rand(n))\n"
        "        self.register_buffer('steps', torch.arange(n))\n"
    )
    tensors = examine("counted.py:Net(4)", {}).tensors
    constancy = {key: tensor.constancy for key, tensor in tensors.items()}
    assert constancy == {"noise": Constancy.RANDOM, "steps": Constancy.CONSTANT}


def test_a_file_is_imported_once(project):
    (project / "once.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "with Path('imports.txt').open('a') as file:\n    file.write('x')\n"
        "Net = nn.ReLU\n"
    )
    ckptool.audit("once.py:Net")
    ckptool.audit("once.py:Net")
    assert (project / "imports.txt").read_text() == "x"


def test_a_package_in_site_packages_does_not_hide_a_folder_of_that_name(project):
    (project / "torch_like").mkdir()
    (project / "msgspec").mkdir()
    (project / "msgspec" / "net.py").write_text(
        "from torch import nn\nNet = lambda: nn.Linear(2, 2)\n"
    )
    assert shapes("msgspec/net.py:Net") == linear(2, 2)


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["models/net.py:Net", "-k", "cfg.d=5", "-k", "cfg.inner.width=2"], 0, ""),
        (["models/net.py:Net", "-k", "cfg={'d': 5}", "-k", "cfg.inner={'width': 2}"], 0, ""),
        (["models/net.py:Net", "--kwargs", "net.yaml"], 0, ""),
        (["models/net.py:FromArgs", "--kwargs", "args.json"], 0, "as an argparse.Namespace"),
        (["models/net.py:Net", "-k", "cfg=5", "-k", "cfg.d=2"], 2, "`cfg` was given as 5"),
        (["models/net.py:Net", "-k", "cfg.=5"], 2, "expected name=value"),
        (["train.py:GPT", "-k", "x=1"], 2, "got an unexpected keyword argument 'x'"),
    ],
)  # fmt: skip
def test_the_command_takes_each_form(project, words, code, said):
    (project / "net.yaml").write_text("cfg:\n  d: 5\n  inner: {width: 2}\n")
    (project / "args.json").write_text('{"args": {"d": 5, "inner": {"width": 2}}}')
    run = subprocess.run(
        [sys.executable, "-m", "ckptool", "audit", "-m", *words],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == code, run.stderr
    assert said in run.stderr
    if code == 0:
        assert "2 parameters (48 B)" in run.stdout


def test_inputs_of_a_file(project):
    (project / "inputs.py").write_text(
        "import torch\ndef example():\n    return torch.zeros(1, 3)\n"
    )
    (project / "other").mkdir()
    torch.save(torch.nn.Linear(3, 4).state_dict(), "model.pth")
    for name in ("inputs:example", "inputs.py:example"):
        report = ckptool.verify(
            "model.pth", module="torch.nn:Linear", kwargs={"in_features": 3, "out_features": 4},
            inputs=name, device="cpu",
        )  # fmt: skip
        assert {level.level: level.status for level in report.levels}["forward"] == "passed"


def test_namespaces_are_argparse_namespaces(project):
    def build(args):
        return args.d

    announced = []
    converted = build_config_objects(build, {"args": {"d": [{"e": 1}]}}, announced.append)
    assert converted == {"args": argparse.Namespace(d=[argparse.Namespace(e=1)])}
    assert announced == ["args"]


@pytest.mark.process
@pytest.mark.parametrize("mode", [[], ["--in-process"]])
def test_a_folder_to_import_from(project, mode):
    words = ["-m", "package.deep.net:Net", *mode]
    command = [sys.executable, "-m", "ckptool", "audit", *words]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 2
    assert "pass --path src" in run.stderr
    run = subprocess.run([*command, "--path", "src"], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

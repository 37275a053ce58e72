"""A checkpoint's own arguments are offered where they are missing, taken by @place, refused."""

import argparse
import itertools
import re
import shlex
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attrs
import pydantic
import pytest
import torch
from torch import nn

import ckptool as package
from ckptool.config import TRUST_RULE, TrustRule

SIZES = {"d": 5, "n": 4}
NETS = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Cfg:
    d: int = 3
    n: int = 2

class ByName(nn.Module):
    def __init__(self, d, n=2):
        super().__init__()
        self.l = nn.Linear(d, n)

    def forward(self, x):
        return self.l(x)

class Both(ByName):
    def __init__(self, d, n):
        super().__init__(d, n)

class ByConfig(ByName):
    def __init__(self, cfg: Cfg):
        super().__init__(cfg.d, cfg.n)

class ByAttributes(ByName):
    def __init__(self, opt):
        super().__init__(opt.d, opt.n)

class ByItems(ByName):
    def __init__(self, config):
        super().__init__(config["d"], config["n"])
"""


@dataclass
class Plain:
    d: int = 5
    n: int = 4


@dataclass(slots=True)
class Slotted:
    d: int = 5
    n: int = 4


@attrs.define
class Attrs:
    d: int = 5
    n: int = 4


class Pydantic(pydantic.BaseModel):
    d: int = 5
    n: int = 4


@dataclass
class WithFunction:
    d: int = 5
    n: int = 4
    act: Any = field(default=torch.relu)


class Dict(dict):
    pass


HOLDERS = {
    "dict": dict(SIZES),
    "Namespace": argparse.Namespace(**SIZES),
    "SimpleNamespace": types.SimpleNamespace(**SIZES),
    "dataclass": Plain(),
    "slots": Slotted(),
    "attrs": Attrs(),
    "pydantic": Pydantic(),
    "a function in it": WithFunction(),
    "dict subclass": Dict(SIZES),
}
PLACES = ["model_args", "hyper_parameters", "args", "cfg", "config"]
STATE = nn.Linear(5, 4).state_dict(prefix="l.")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(folder: Path, **entries: object) -> Path:
    torch.save({"model": STATE, **entries}, folder / "model.pth")
    return folder / "model.pth"


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("Both", "@args"),
        ("ByConfig", {"cfg": "@args"}),
        ("ByAttributes", {"opt": "@args"}),
        ("Both", {"d": "@args.d", "n": "@args.n"}),
        ("ByConfig", {"cfg.d": "@args.d", "cfg.n": "@args.n"}),
    ],
)
def test_every_kind_of_arguments_is_read_as_plain_data(holder, name, kwargs, folder, run_command):
    if holder == "a function in it" and kwargs == {"cfg": "@args"}:
        pytest.skip("what is no plain data is left out, and the others fit")
    save(folder, args=HOLDERS[holder])
    words = ["--kwargs", kwargs] if isinstance(kwargs, str) else []
    for parameter, value in {} if isinstance(kwargs, str) else kwargs.items():
        words += ["-k", f"{parameter}={value}"]
    ran = run_command("diff", "model.pth", "-m", f"nets.py:{name}", *words, cwd=folder)
    assert ran.code in {0, 1}, ran.err
    assert ran.out.startswith("loads strictly")
    assert re.search(r"taken from `args(\.\w)?` of the file", ran.out)


@pytest.mark.parametrize(
    ("name", "place"), list(itertools.product(["Both", "ByConfig", "ByAttributes"], PLACES))
)
def test_the_message_offers_what_works(name: str, place: str, folder: Path, run_command):
    save(folder, epoch=3, **{place: dict(SIZES)})
    words = ["diff", "model.pth", "-m", f"nets.py:{name}"]
    ran = run_command(*words, cwd=folder)
    if place == "hyper_parameters" and name == "Both":
        assert ran.out.startswith("loads strictly")  # Lightning's are taken without being asked
        return
    assert ran.code == 2
    assert f"`{place}` (d, n)" in ran.err
    options = re.search(r": add (.*?); the file has", ran.err)
    assert options is not None
    assert len(shlex.split(options[1])) == 2
    ran = run_command(*words, *shlex.split(options[1]), cwd=folder)
    assert ran.out.startswith("loads strictly")


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"config": {"net": dict(SIZES), "lr": 1}}, "--kwargs @config.net"),
        ({"args": {"d": 5}, "cfg": {"n": 4}}, "-k d=@args.d -k n=@cfg.n"),
        ({"args": {"d": 5}}, "-k d=@args.d -k n=<value>"),
        ({"epoch": 3, "note": "text"}, "-k d=<value> -k n=<value>"),
        ({"callbacks": {"d": 1, "n": 2}}, "-k d=<value> -k n=<value>"),
    ],
)
def test_the_shortest_options_come_first(entries, expected: str, folder: Path):
    with pytest.raises(package.CkptoolError) as error:
        package.diff(save(folder, **entries), module="nets.py:Both")
    assert f"add {expected}" in str(error.value)


def test_more_fields_than_a_config_class_has(folder: Path, run_command):
    save(folder, args={**SIZES, "lr": 0.1})
    words = ["diff", "model.pth", "-m", "nets.py:ByConfig"]
    options = re.search(r": add (.*?); the file has", run_command(*words, cwd=folder).err)
    assert options is not None
    assert options[1] == "-k cfg.d=@args.d -k cfg.n=@args.n"
    ran = run_command(*words, *shlex.split(options[1]), cwd=folder)
    assert ran.out.startswith("loads strictly")


COMMANDS = {
    "diff": [],
    "verify": ["--device", "cpu", "--input", "float32[2,5]"],
    "gate": ["--no-values"],
    "migrate": ["-o", "new.pth"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_them_says_so_and_refuses_them(command, folder: Path, run_command):
    save(folder, model_args=dict(SIZES))
    words = [command, "model.pth", "-m", "nets.py:Both", "--kwargs", "@model_args"]
    ran = run_command(*words, *COMMANDS[command], cwd=folder)
    assert ran.code == 0, ran.err + ran.out
    assert "is built with arguments from the file: d=5, n=4" in ran.err + ran.notices
    (folder / "new.pth").unlink(missing_ok=True)
    ran = run_command(*words, *COMMANDS[command], "--no-file-kwargs", cwd=folder)
    assert ran.code == 2
    assert "--kwargs @model_args: arguments of a file are refused" in ran.err


def test_the_library_takes_them_and_refuses_them(folder: Path):
    path = save(folder, model_args={**SIZES, "lr": 0.1})
    report = package.diff(path, module="nets.py:Both", kwargs="@model_args")
    assert report.verdict == "loads strictly"
    assert "matching constructor arguments were taken from `model_args` of the file: d, n" in (
        report.notes
    )
    token = TRUST_RULE.set(TrustRule(uses_file_kwargs=False))
    try:
        with pytest.raises(package.CkptoolError, match="refused"):
            package.diff(path, module="nets.py:Both", kwargs="@model_args")
    finally:
        TRUST_RULE.reset(token)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--kwargs", "@nothing"], "has no plain data at `nothing`; it has @model_args"),
        (["-k", "d=@model_args.q"], "has no plain data at `model_args.q`"),
        (["--kwargs", "@epoch"], "`epoch` is 3, not a mapping"),
        (["-k", "q=@model_args.d", "-k", "d=1", "-k", "n=1"], "unexpected keyword argument 'q'"),
    ],
)
def test_what_the_file_does_not_have_is_an_error(words, reason, folder: Path, run_command):
    save(folder, epoch=3, model_args=dict(SIZES))
    ran = run_command("diff", "model.pth", "-m", "nets.py:Both", *words, cwd=folder)
    assert ran.code == 2
    assert reason in ran.err


@pytest.mark.parametrize("words", [["audit"], ["lock"]])
def test_without_a_checkpoint_there_is_no_place(words, folder: Path, run_command):
    ran = run_command(*words, "-m", "nets.py:Both", "--kwargs", "@args", cwd=folder)
    assert ran.code == 2
    assert "--kwargs @args is in a checkpoint, and none is named here" in ran.err


def test_a_fix_repeats_them(folder: Path):
    state = {f"module.{key}": value for key, value in STATE.items()}
    torch.save({"model": state, "args": SIZES}, folder / "model.pth")
    report = package.diff("model.pth", module="nets.py:Both", kwargs="@args")
    fixes = [finding.fix for finding in report.findings if "ckptool migrate" in finding.fix]
    assert fixes
    assert all("-m nets.py:Both --kwargs @args" in fix for fix in fixes)


class Acts:
    """Leaves a marker if anything unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def test_nothing_in_them_is_executed(folder: Path, run_command):
    marker = folder / "marker"
    save(folder, args=argparse.Namespace(**SIZES, act=Acts(marker)))
    ran = run_command("diff", "model.pth", "-m", "nets.py:Both", "--kwargs", "@args", cwd=folder)
    assert ran.out.startswith("loads strictly")
    assert not marker.exists()


def test_omegaconf_is_read_as_plain_data(folder: Path):
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"net": SIZES, "names": ["a", "b"], "lr": "${net.d}"})
    path = save(folder, cfg=config)
    values = {entry.at: entry.value for entry in package.open_checkpoint(path).entries}
    assert values["cfg"] == {"net": SIZES, "names": ["a", "b"], "lr": "${net.d}"}
    report = package.diff(path, module="nets.py:Both", kwargs="@cfg.net")
    assert report.verdict == "loads strictly"


CONFIGURED = {
    "all": ('module = "nets:ByName"', 'kwargs = "@model_args"'),
    "one": ('module = "nets:ByConfig"', 'kwargs = { cfg = "@model_args" }'),
    "a field": ('module = "nets:ByItems"', 'kwargs = { config = { d = "@model_args.d", n = 4 } }'),
    "all but one": ('module = "nets:ByName"', 'kwargs = { "**" = "@model_args", n = 4 }'),
}


@pytest.mark.parametrize("form", CONFIGURED)
def test_a_place_in_the_configuration(form: str, folder: Path) -> None:
    """Each file is judged with its own arguments; without a file, those of the first are taken."""
    for name, d in (("a", 5), ("b", 7)):
        state = nn.Linear(d, 4).state_dict(prefix="l.")
        torch.save({"model": state, "model_args": {"d": d, "n": 4}}, folder / f"{name}.pth")
    (folder / "ckptool.toml").write_text(
        "\n".join(("[[models]]", 'path = "?.pth"', *CONFIGURED[form]))
    )
    assert [package.diff(name).verdict for name in ("a.pth", "b.pth")] == ["loads strictly"] * 2
    assert package.gate([]).exit_code == 0
    (module,) = package.audit().modules
    assert {tensor.key: tuple(tensor.shape) for tensor in module.parameters} == {
        key: tuple(tensor.shape) for key, tensor in nn.Linear(5, 4).state_dict(prefix="l.").items()
    }
    assert package.lock().locks[0].keys == 2
    assert package.lock(check=True).exit_code == 0


def test_two_at_signs_are_one_and_no_place(folder: Path) -> None:
    (folder / "named.py").write_text(
        "from torch import nn\nclass N(nn.Linear):\n    def __init__(self, name):\n"
        "        assert name == '@cfg', name\n        super().__init__(5, 4)\n"
    )
    torch.save({"model": nn.Linear(5, 4).state_dict(), "cfg": {"name": 3}}, folder / "model.pth")
    (folder / "ckptool.toml").write_text(
        '[[models]]\npath = "*.pth"\nmodule = "named:N"\nkwargs = { name = "@@cfg" }\n'
    )
    assert package.diff("model.pth").verdict == "loads strictly"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ('"@nothing"', "no plain data at `nothing`; it has @model_args"),
        ('"model_args"', "expected a mapping, or '@place'"),
        ("3", "expected"),
    ],
)
def test_a_place_that_is_not_there_is_refused(kwargs: str, message: str, folder: Path) -> None:
    save(folder, model_args=dict(SIZES))
    (folder / "ckptool.toml").write_text(
        f'[[models]]\npath = "*.pth"\nmodule = "nets:ByName"\nkwargs = {kwargs}\n'
    )
    with pytest.raises(package.CkptoolError, match=re.escape(message)):
        package.diff("model.pth")


def test_without_a_file_there_are_no_arguments(folder: Path) -> None:
    (folder / "ckptool.toml").write_text(
        '[[models]]\npath = "*.pth"\nmodule = "nets:ByName"\nkwargs = "@model_args"\n'
    )
    with pytest.raises(package.CkptoolError, match="no local file matches path"):
        package.audit()

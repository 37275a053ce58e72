"""audit and lock without -m look at all modules of the configuration, each in its own block."""

import json
from pathlib import Path

import pytest

import ckptool as package

NETS = """
import torch
from torch import nn
class Clean(nn.Linear):
    def __init__(self, d=2): super().__init__(d, d)
class Loses(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.noise = torch.rand(3)
class Fails(nn.Module):
    def __init__(self): raise ValueError("no")
"""


def write_models(folder: Path, *entries: str, name: str = "ckptool.toml") -> None:
    table = "[[models]]" if name == "ckptool.toml" else "[[tool.ckptool.models]]"
    lines = [f'{table}\npath = "{n}.pth"\n{entry}\n' for n, entry in enumerate(entries)]
    (folder / "nets.py").write_text(NETS)
    (folder / name).write_text("\n".join(lines))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


CLEAN, LOSES, FAILS = (f'module = "nets:{name}"' for name in ("Clean", "Loses", "Fails"))
SIZED = f"{CLEAN}\nkwargs = {{ d = 3 }}"


@pytest.mark.parametrize("name", ["ckptool.toml", "pyproject.toml"])
@pytest.mark.parametrize(
    ("entries", "modules", "code"),
    [
        ([CLEAN], ["nets:Clean"], 0),
        ([CLEAN, SIZED], ["nets:Clean", "nets:Clean"], 0),
        ([CLEAN, CLEAN], ["nets:Clean"], 0),
        ([CLEAN, LOSES], ["nets:Clean", "nets:Loses"], 1),
        ([FAILS, LOSES, CLEAN], ["nets:Loses", "nets:Clean"], 2),
    ],
)
def test_audit(name: str, entries: list[str], modules: list[str], code: int, folder: Path):
    write_models(folder, *entries, name=name)
    report = package.audit()
    assert [part.module for part in report.modules] == modules
    assert report.exit_code == code
    singles = [package.audit(module) for module in {*modules} - {"nets:Clean"}]
    assert {f.code for f in report.findings} == {f.code for s in singles for f in s.findings}
    assert (FAILS in entries) is any("ValueError: no" in error for error in report.errors)


@pytest.mark.parametrize(
    ("entries", "verdict"),
    [
        ([CLEAN], "1 module passed"),
        ([CLEAN, SIZED], "2 modules passed"),
        ([CLEAN, LOSES], "2 modules, 1 failed"),
    ],
)
def test_the_verdict_alone_says_whether_they_passed(entries, verdict, folder: Path, run_command):
    """It was "1 module", and --quiet printed the table of the modules as well."""
    write_models(folder, *entries)
    ran = run_command("audit", "-q", cwd=folder)
    assert ran.out == f"{verdict}\n"
    assert ran.code == int("failed" in verdict)


@pytest.mark.parametrize(
    "format_", ["table", "json", "markdown", "html", "sarif", "junit", "github"]
)
def test_every_format_has_all_of_them(format_: str, folder: Path, run_command):
    write_models(folder, CLEAN, LOSES)
    ran = run_command("audit", "--format", format_, "-o", "report", cwd=folder)
    assert ran.code == 1
    text = (folder / "report").read_text()
    assert "noise" in text
    if format_ in {"table", "markdown", "html", "json"}:
        assert text.index("nets:Clean") < text.index("nets:Loses")
    if format_ == "json":
        assert [m["exit_code"] for m in json.loads(text)["modules"]] == [0, 1]


def test_locks_are_named_written_and_checked(folder: Path):
    write_models(folder, CLEAN, SIZED, f'{LOSES}\nagainst = "kept/own.json"')
    (folder / "kept").mkdir()
    report = package.lock()
    names = ["Clean.lock.json", "Clean-2.lock.json", "kept/own.json"]
    assert [part.path for part in report.locks] == names
    assert all((folder / name).is_file() for name in names)
    assert report.exit_code == 0
    assert package.lock(check=True).exit_code == 0
    (folder / names[0]).write_bytes((folder / names[1]).read_bytes())
    stale = package.lock(check=True)
    assert stale.exit_code == 1
    assert [part.exit_code for part in stale.locks] == [1, 0, 0]


def test_one_module_has_the_usual_lock(folder: Path):
    write_models(folder, CLEAN)
    assert [part.path for part in package.lock().locks] == ["ckpt.lock.json"]
    assert package.lock(output="mine.json").locks[0].path == "mine.json"


def test_an_error_does_not_stop_the_others(folder: Path):
    write_models(folder, FAILS, CLEAN)
    report = package.lock()
    assert report.exit_code == 2
    assert [part.name for part in report.locks] == ["nets:Clean"]
    assert "nets:Fails" in report.errors[0]


@pytest.mark.parametrize(
    ("command", "options", "reason"),
    [
        (package.audit, {}, "ckptool init writes it"),
        (package.lock, {}, "ckptool init writes it"),
        (package.audit, {"kwargs": {"d": 3}}, "-k is for the module that -m names"),
        (package.lock, {"kwargs": {"d": 3}}, "-k is for the module that -m names"),
    ],
)
def test_without_a_module_it_is_said_how(command, options, reason, folder: Path):
    with pytest.raises(package.CkptoolError, match=reason):
        command(**options)


def test_one_file_cannot_hold_two_locks(folder: Path):
    write_models(folder, CLEAN, LOSES)
    with pytest.raises(package.CkptoolError, match="names 2 modules"):
        package.lock(output="mine.json")

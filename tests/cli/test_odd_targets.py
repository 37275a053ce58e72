"""Outputs that are pipes, sockets, devices, folders or links: one line, and what is there stays."""
# ruff: noqa: PTH208

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from writing_folder import MODULE, read_all, write_project

GOLDEN = ("lock", "old.pth", "-m", "net:Old", "--input", "float32[2,4]", "--golden")
NAMED = ("--module", "net:Net", "--in-process")
TARGETS = {
    "migrate -o": ("migrate", "old.pth", *MODULE, "-o", "out.pth"),
    "migrate's record": ("migrate", "old.pth", *MODULE, "-o", "record.pth"),
    "migrate --save-plan": ("migrate", "old.pth", *MODULE, "-o", "x.pth", "--save-plan", "out.pth"),
    "migrate --emit-hook": ("migrate", "old.pth", *MODULE, "-o", "x.pth", "--emit-hook", "out.pth"),
    "convert -o": ("convert", "old.pth", "-o", "out.pth"),
    "lock -o": ("lock", "old.pth", "-o", "out.pth"),
    "lock --golden": (*GOLDEN, "out.pth"),
    "revision --save-plan": ("revision", "-m", "x", *NAMED, "--save-plan", "out.pth"),
    "gate --baseline": ("gate", "old.pth", "--update-baseline", "--baseline", "out.pth"),
}  # fmt: skip
"""Output -> a command that writes it to out.pth, or the record of record.pth."""
LINKED = b"content of the file that the link leads to"


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(b"x")


KINDS = {"a named pipe": make_pipe, "a socket": make_socket, "a folder": make_folder}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    write_project(tmp_path)
    return tmp_path


def name_target(name: str) -> str:
    return "record.pth.ckptool.json" if name == "migrate's record" else "out.pth"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TARGETS)
def test_what_is_no_file_is_never_replaced(name, kind, folder, run_command):
    target = Path(name_target(name))
    make: Callable[[Path], None] = KINDS[kind]
    make(target)
    before, mode = read_all(folder), target.lstat().st_mode
    forces = ((),) if name.startswith(("revision", "gate")) else ((), ("--force",))
    if kind == "a folder" and name == "convert -o":
        return  # the results of several sources, or of one, go into it
    for force in forces:
        if kind == "a folder" and name == "migrate -o":
            continue
        ran = run_command(*TARGETS[name], *force, cwd=folder)
        assert ran.code == 2, (force, ran)
        (line,) = ran.err.splitlines()
        assert str(target) in line
        assert "replace it with --force" not in line
        assert (read_all(folder), target.lstat().st_mode) == (before, mode)


@pytest.mark.parametrize("name", ["lock -o", "lock --golden", "migrate --save-plan"])
def test_a_device_is_never_replaced(name, folder, run_command):
    words = ["/dev/full" if word == "out.pth" else word for word in TARGETS[name]]
    before = Path("/dev/full").stat()
    ran = run_command(*words, "--force", cwd=folder)
    assert (ran.code, ran.err) == (
        2, "ckptool: /dev/full: is a device, and a file would be written: choose another name\n",
    )  # fmt: skip
    assert Path("/dev/full").stat().st_rdev == before.st_rdev


@pytest.mark.parametrize("leads_to", ["a file", "nothing", "itself"])
@pytest.mark.parametrize("name", TARGETS)
def test_a_link_is_replaced_or_kept_and_never_followed(name, leads_to, folder, run_command):
    target = Path(name_target(name))
    elsewhere = Path("elsewhere")
    if leads_to == "a file":
        elsewhere.write_bytes(LINKED)
    target.symlink_to(target.name if leads_to == "itself" else elsewhere)
    forces = ((),) if name.startswith(("revision", "gate")) else ((), ("--force",))
    for force in forces:
        ran = run_command(*TARGETS[name], *force, cwd=folder)
        assert ran.code in {0, 1, 2}, ran
        if leads_to == "a file":
            assert elsewhere.read_bytes() == LINKED
        else:
            assert not elsewhere.exists()
        if ran.code == 2:
            (line,) = ran.err.splitlines()
            assert line.startswith("ckptool: ")
            assert target.is_symlink()
        else:
            assert target.is_file()
            assert not target.is_symlink()
        assert not [name for name in os.listdir() if name.startswith(".ckptool-")]


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "revision --save-plan"])
def test_a_folder_that_takes_no_files_is_one_line(name, folder, run_command):
    words = ["/proc/out.pth" if w in {"out.pth", "record.pth"} else w for w in TARGETS[name]]
    before = read_all(folder)
    ran = run_command(*words, cwd=folder)
    assert ran.code == 2, ran
    (line,) = ran.err.splitlines()
    assert line.startswith("ckptool: /proc/")
    assert read_all(folder) == before

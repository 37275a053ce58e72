"""Files that are none, names that no file has, and streams that are closed: one line and exit 2."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_runs import LINEAR
from files import save
from paths import ROOT
from torch import nn


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with odd files; it is the current one."""
    monkeypatch.chdir(tmp_path)
    net = save(tmp_path / "net.pth", nn.Linear(2, 3).state_dict())
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words")
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    contents = {
        "no-bytes": b"",
        "one-byte": b"\x80",
        "zeros.pth": bytes(1000),
        "a\nb.pth": b"words\n",
        os.fsdecode(b"\xff.pth"): b"words",
        "words.txt": b"words",
        "page.html": b"<html>",
        "x.gz": b"\x1f\x8b\x08\0" * 9,
        "cut.pth": net.read_bytes()[:200],
        "\u202eoverride.pth": b"words",
        "-x.pth": b"words",
        "object.json": b"{}",
        "model.safetensors.index.json": b'{"weight_map": []}',
    }
    for name, content in contents.items():
        Path(name).write_bytes(content)
    with Path("sparse.safetensors").open("wb") as sparse:
        sparse.truncate(1 << 40)
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    return tmp_path


ODD_NAMES = (
    *("empty", "texts", "fifo", "/dev/null", "/dev/zero", "/dev/stdin", "socket", "no-bytes"),
    *("one-byte", "zeros.pth", "a\nb.pth", "c\nd.pth", os.fsdecode(b"\xff.pth")),
    *(os.fsdecode(b"\xfe.pth"), "dangling", "loop", "words.txt", "page.html", "x.gz", "cut.pth"),
    *("sparse.safetensors", "\u202eoverride.pth", "./-x.pth", "object.json", "n" * 300),
    *("model.safetensors.index.json", "/" + "n/" * 3000, "", "-", "/", "~nobody/x.pth"),
    *("http://", "http://[", "file:///nowhere", "s3://", "net.pth/x", "::"),
    *("C:\\x.pth", "/proc/self/mem", "/proc/self/fd/99999"),
)
COMMANDS = {
    "inspect": lambda name: ["inspect", "--", name],
    "digest": lambda name: ["digest", "--", name],
    "gate": lambda name: ["gate", "--no-config", "--", name],
    "diff to": lambda name: ["diff", "--", name, "net.pth"],
    "diff from": lambda name: ["diff", "--", "net.pth", name],
    "diff with a module": lambda name: ["diff", *LINEAR, "--", name],
    "lock": lambda name: ["lock", "-o", "x.lock", "--", name],
    "verify": lambda name: ["verify", *LINEAR, "--", name],
    "migrate": lambda name: ["migrate", *LINEAR, "-o", "new.pth", "--", name],
    "merge": lambda name: ["merge", "-o", "new.json", "--", name, "net.pth"],
    "--policy": lambda name: ["gate", "--policy", name, "net.pth"],
    "--baseline": lambda name: ["gate", "--no-config", "--baseline", name, "net.pth"],
    "--against": lambda name: ["gate", "--no-config", "--against", name, "net.pth"],
    "--plan": lambda name: ["migrate", *LINEAR, "--plan", name, "-o", "new.pth", "net.pth"],
    "--golden": lambda name: ["verify", *LINEAR, "--golden", name, "net.pth"],
}


EMPTY_FILES = {"/dev/null", "/dev/stdin", "no-bytes"}


@pytest.mark.parametrize("use", COMMANDS)
def test_what_is_no_checkpoint_is_one_line(folder, run_command, use):
    for name in ODD_NAMES:
        if use in {"--policy", "--plan"} and name in EMPTY_FILES:
            continue
        ran = run_command(*COMMANDS[use](name), cwd=folder)
        assert ran.code == 2, (name, ran)
        (line,) = ran.err.splitlines()
        assert line.startswith("ckptool"), (name, line)
        assert not (folder / "new.pth").exists()


OUTPUTS = ("empty", "net.pth", "", "no/x", "n" * 300, "loop", "net.pth/x", "/proc/x")


@pytest.mark.parametrize("words", [("inspect", "net.pth", "--format", "json"), ("lock", "net.pth")])
def test_an_output_that_cannot_be_written_is_one_line(folder, run_command, words):
    before = (folder / "net.pth").read_bytes()
    for name in OUTPUTS:
        ran = run_command(*words, "-o", name, cwd=folder)
        assert ran.code == 2, (name, ran)
        (line,) = ran.err.splitlines()
        assert line.startswith("ckptool"), (name, line)
    assert (folder / "net.pth").read_bytes() == before


CLOSED_USES = [
    ["inspect", "net.pth"],
    ["digest", "net.pth"],
    ["lock", "net.pth", "-o", "x.lock", "--force"],
    ["rule", "CK301"],
    ["--version"],
]


FAILING_STREAMS = (">&-", "<&- >&-", ">/dev/full")
QUIET_STREAMS = ("2>&-", "<&-", "<&- 2>&-")


def start_in_shell(folder, words, streams):
    folder.mkdir()
    save(folder / "net.pth", {"w": torch.zeros(2)})
    return subprocess.Popen(
        ["sh", "-c", f'"$@" {streams}', "sh", sys.executable, "-m", "ckptool", *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize("words", CLOSED_USES)
def test_closed_streams(tmp_path, words):
    """All at once: a process mostly waits for others."""
    started = {
        streams: start_in_shell(tmp_path / str(number), words, streams)
        for number, streams in enumerate((*FAILING_STREAMS, *QUIET_STREAMS))
    }
    ran = {streams: (*shell.communicate(), shell.returncode) for streams, shell in started.items()}
    for streams in FAILING_STREAMS:
        _, err, code = ran[streams]
        (line,) = err.splitlines()
        assert (code, line[:9]) == (2, "ckptool: "), (streams, ran)
    for streams in QUIET_STREAMS:
        out, err, code = ran[streams]
        assert (code, err) == (0, ""), (streams, ran)
        assert out or words[0] == "lock"


def test_an_empty_path_is_said_to_be_empty(run_command, tmp_path) -> None:
    """`ckptool inspect "$UNSET"` looked at the current folder."""
    for words in (("inspect", ""), ("diff", "", ""), ("convert", "", "-o", "x.pth")):
        ran = run_command(*words, cwd=tmp_path)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == "ckptool: a path is empty: is a variable of the shell not set?\n"


def test_an_option_without_its_value_refers_to_the_help_of_its_command(run_command) -> None:
    ran = run_command("diff", "a.pth", "-m")
    assert ran.code == 2
    assert ran.err == (
        "ckptool diff: option '-m' requires an argument (see `ckptool diff --help`)\n"
    )


def test_a_missing_file_is_called_the_same_by_each_command(run_command, tmp_path) -> None:
    commands = (("inspect",), ("explain",), ("convert", "-o", "x.pth"), ("digest",))
    for words in commands:
        ran = run_command(words[0], "none.pth", *words[1:], cwd=tmp_path)
        assert (ran.code, ran.err) == (2, "ckptool: none.pth: no such file\n"), words
    ran = run_command("run", "--", "no-such-command-here", cwd=tmp_path)
    assert (ran.code, ran.err) == (2, "ckptool: no-such-command-here: no such command\n")

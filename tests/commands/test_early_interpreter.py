"""The interpreter for user code is started ahead of the parent's imports, if it will be needed."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from paths import ROOT
from torch import nn

from ckptool.commands.worker import interpreter

NET = """
from torch import nn
class Net(nn.Linear):
    def __init__(self):
        super().__init__(2, 3)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with nets.py and linear.pth, the current one."""
    (tmp_path / "nets.py").write_text(NET)
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "linear.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def started(monkeypatch):
    """Interpreters that are started, each ended after the test."""
    processes = []
    start = interpreter.start_interpreter

    def record(descriptors):
        processes.append(start(descriptors))
        return processes[-1]

    monkeypatch.setattr(interpreter, "start_interpreter", record)
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.process
@pytest.mark.parametrize("option", [["-m", "nets:Net"], ["--module", "nets:Net"], ["--module=x"]])
def test_an_interpreter_started_early_is_the_one_that_is_taken(option, started):
    interpreter.start_interpreter_early(["diff", "x.pth", *option])
    assert interpreter.take_interpreter(()) is started[0]
    assert len(started) == 1


@pytest.mark.process
def test_one_that_ended_and_one_without_its_files_is_replaced(started, tmp_path):
    interpreter.start_interpreter_early(["diff", "x.pth", "-m", "nets:Net"])
    started[0].kill()
    started[0].wait()
    assert interpreter.take_interpreter(()) is started[1]
    interpreter.start_interpreter_early(["diff", "-", "-m", "nets:Net"])
    with (tmp_path / "file").open("w") as file:
        assert interpreter.take_interpreter((file.fileno(),)) is started[3]
    assert started[2].poll() is not None


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "x.pth"],
        ["diff", "old.pth", "new.pth"],
        ["diff", "x.pth", "-m", "nets:Net", "--in-process"],
        ["diff", "x.pth", "-m", "nets:Net", "-I", "src"],
        ["diff", "x.pth", "-m", "nets:Net", "--path=src"],
    ],
)
def test_none_is_started_where_it_is_not_needed(words, started):
    interpreter.start_interpreter_early(words)
    assert started == []


def test_an_early_start_that_fails_is_tried_again_when_it_is_needed(monkeypatch):
    def refuse(descriptors):
        raise OSError("no process")

    monkeypatch.setattr(interpreter, "start_interpreter", refuse)
    interpreter.start_interpreter_early(["diff", "x.pth", "-m", "nets:Net"])
    with pytest.raises(OSError, match="no process"):
        interpreter.take_interpreter(())


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["diff", "linear.pth", "-m", "nets:Net"], 0),
        (["diff", "linear.pth", "-m", "nets:Nothing"], 2),
        (["diff", "missing.pth", "-m", "nets:Net"], 2),
        (["diff", "linear.pth", "linear.pth", "-m", "nets:Net"], 2),
        (["diff", "linear.pth", "-m", "nets:Net", "--no-such-option"], 2),
        (["diff", "-m", "nets:Net", "--help"], 0),
    ],
)
def test_no_interpreter_outlives_the_command(words, code, project):
    mark = os.urandom(8).hex()
    done = subprocess.run(
        [sys.executable, "-m", "ckptool", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CKPTOOL_TEST": mark},
        capture_output=True,
        check=False,
    )
    assert done.returncode == code
    deadline = time.monotonic() + 30
    while find_processes(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert find_processes(mark) == []


def find_processes(mark):
    """Return the processes whose environment has `mark`; none where /proc does not exist."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
    return found

"""What takes over a second says how far it is, on a terminal and nowhere else."""

import os
import pty
import subprocess
import sys
import time

import pytest
from paths import ROOT

from ckptool.render.progress_bar import ProgressBar
from ckptool.values.progress import LISTENER, get_byte_counter, start_step

SLOW = """
import time
from torch import nn

class Net(nn.Linear):
    def __init__(self):
        time.sleep(1.5)
        super().__init__(2, 3)
"""


def run_on_terminal(*words, cwd, **environment):
    """Return what the command writes to a terminal as its standard error."""
    leader, follower = pty.openpty()
    environment = {name: v for name, v in os.environ.items() if name != "CI"} | environment
    found = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-m", "ckptool", *words],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        cwd=cwd,
        env=environment | {"PYTHONPATH": found, "TERM": "xterm"},
    ) as process:
        os.close(follower)
        text = b""
        try:
            while chunk := os.read(leader, 4096):
                text += chunk
        except OSError:  # Linux: the other end is closed
            pass
        assert process.wait(timeout=60) in {0, 1}
    os.close(leader)
    return text.decode()


@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "environment", "is_drawn"),
    [
        ((), {}, True),
        (("-q",), {}, False),
        (("--no-progress",), {}, False),
        ((), {"CI": "true"}, False),
    ],
)
def test_a_slow_constructor_is_said_on_a_terminal(tmp_path, options, environment, is_drawn):
    (tmp_path / "slow.py").write_text(SLOW)
    words = ("audit", "-m", "slow:Net", *options)
    text = run_on_terminal(*words, cwd=tmp_path, **environment)
    assert ("building slow:Net" in text) == is_drawn
    if is_drawn:  # and erased: the last thing written is blank
        assert text.rstrip("\r\n").rsplit("\r", 1)[-1].strip() == ""


@pytest.mark.process
def test_nothing_is_drawn_in_a_pipe(ckptool, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    ran = ckptool("audit", "-m", "slow:Net", cwd=tmp_path)
    assert "building" not in ran.err + ran.out


def test_steps_and_bytes_reach_the_bar(capsys):
    with ProgressBar():
        start_step("reading a.pth", 100)
        get_byte_counter()(40)
        time.sleep(1.3)
        drawn = capsys.readouterr().err
        start_step("writing b.pth", 100, in_background=True)
        start_step("building Net")
        time.sleep(0.5)
        drawn_later = capsys.readouterr().err
    assert "reading a.pth:  40%" in drawn
    assert "writing b.pth:   0%" in drawn_later
    assert "building Net" not in drawn_later
    assert LISTENER.get() is None


def test_without_a_listener_nothing_is_counted():
    start_step("reading a.pth", 100)
    get_byte_counter()(40)
    assert LISTENER.get() is None

"""Modules whose code does what code must not: each run ends in a right verdict, or in one line."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from paths import ROOT
from torch import nn

pytestmark = pytest.mark.process

BASE = """
import builtins, ctypes, json, os, signal, sys, threading, time, warnings
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.act()

    def act(self): ...

    def forward(self, x):
        return self.layer(x)

    def example_inputs(self):
        return (torch.ones(1, 2, device="cpu"),)

class Shouting(Exception):
    def __str__(self):
        raise RuntimeError("no text")

def write_if_open(descriptor):
    try:
        os.write(descriptor, b"\\xff" * 99)
    except OSError:
        pass
"""
ACT = "class {name}(Net):\n    def act(self):\n        {body}\n"
ENDING = {
    "exits": ("os._exit(0)", "exit status 0"),
    "crashes": ("ctypes.string_at(0)", "SIGSEGV"),
    "aborts": ("os.abort()", "SIGABRT"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "leaves": ("sys.exit(0)", "SystemExit"),
    "stops_generators": ("raise GeneratorExit", "GeneratorExit"),
    "sets_an_alarm": ("signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(9)", "SIGALRM"),
    "hangs": ("time.sleep(600)", "longer than 8 s"),
    "loops": ("while True: pass", "longer than 8 s"),
    "has_no_text": ("raise Shouting('x')", "Shouting"),
    "closes_all": ("os.closerange(0, 4096)", "running its code"),
    "writes_to_all": (
        "[write_if_open(n) for n in range(3, 99)]",
        "running its code",
    ),
    "kills_its_group": ("os.killpg(0, signal.SIGTERM)", "SIGTERM"),
    "reads": ("input()", "EOFError"),
    "leaves_a_fork": ("os.fork() or time.sleep(600); os._exit(0)", "exit status 0"),
}
"""Name -> what the constructor does, and what the line says of it."""
HARMLESS = {
    "does_nothing": "pass",
    "prints_json": """os.write(1, b'{"exit_code": 0}\\n::error::x\\x1b[31m\\n')""",
    "shouts": "[sys.stderr.write('a line of a warning\\n') for _ in range(20_000)]",
    "goes_on_twice": "os.fork() or os.write(1, b'{\\x1b[31m\\n')",
    "goes_on_twice_unseen": "ctypes.CDLL(None).fork() or os.write(1, b'{\\x1b[31m\\n')",
    "keeps_a_fork": "os.fork() or time.sleep(600)",
    "keeps_a_thread": "threading.Thread(target=time.sleep, args=(600,)).start()",
    "sets_a_device": "torch.set_default_device('meta')",
    "forgets_paths": "sys.path.clear()",
    "patches_open": "builtins.open = None",
    "patches_json": "json.dumps = json.loads = None",
    "closes_streams": "sys.stdout = sys.stderr = None",
    "sets_an_alarm_for_later": "signal.alarm(600)",
    "forbids_recursion": "sys.setrecursionlimit(60)",
}
"""Name -> what the constructor does, after which the file still loads strictly."""
ODD = {
    "deletes_modules": "[sys.modules.pop(n) for n in [*sys.modules] if n != 'builtins']",
    "patches_os": "os.write = os.read = os.getpid = None",
    "patches_len": "builtins.len = None",
    "forgets_finders": "sys.meta_path.clear(); sys.path_hooks.clear()",
}
"""Name -> what may end in either way."""
METHODS = """
class EndlessNames(Net):
    def named_modules(self, *args, **kwargs):
        while True:
            yield "", self

class EndlessParameters(Net):
    def named_parameters(self, *args, **kwargs):
        while True:
            time.sleep(0.001)
            yield "layer.weight", self.layer.weight

class EndlessTraining(Net):
    def children(self):
        while True:
            yield self.layer

class EndlessBelow(nn.Module):
    class Part(nn.Linear):
        def named_buffers(self, *args, **kwargs):
            while True:
                yield "b", self.weight

    def __init__(self):
        super().__init__()
        self.layer = self.Part(2, 3)

class EndlessKeys(Net):
    class State(dict):
        def __iter__(self):
            while True:
                yield "layer.weight"

    def state_dict(self, *args, **kwargs):
        return self.State(super().state_dict(*args, **kwargs))

class ExitsInForward(Net):
    def forward(self, x):
        os._exit(0)

class InterruptsInForward(Net):
    def forward(self, x):
        raise KeyboardInterrupt

class InterruptsTheLoad(Net):
    def _load_from_state_dict(self, *args, **kwargs):
        raise KeyboardInterrupt

class ExitsInTheLoad(Net):
    def load_state_dict(self, *args, **kwargs):
        os._exit(0)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    bodies = {name: body for name, (body, _) in ENDING.items()} | HARMLESS | ODD
    acts = [ACT.format(name=name, body=body) for name, body in bodies.items()]
    (folder / "nets.py").write_text(BASE + "".join(acts) + METHODS)
    layer = nn.Linear(2, 3).state_dict()
    torch.save({f"layer.{key}": value for key, value in layer.items()}, folder / "net.pth")
    return folder


def own_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("| ")]


def check_refused(ran, reason: str) -> None:
    """One line on standard error, nothing but JSON on standard output, and exit status 2."""
    assert ran.code == 2
    (line,) = own_lines(ran.err)
    assert line.startswith("ckptool: ")
    assert reason in line
    assert "Traceback" not in ran.err
    assert not ran.out or json.loads(ran.out)["exit_code"] == 2


def seconds(reason: str) -> int:
    """Return a short limit for what does not end by itself, else a long one."""
    return 8 if reason.startswith("longer") else 60


@pytest.mark.parametrize(("name", "reason"), [(name, why) for name, (_, why) in ENDING.items()])
def test_code_that_ends_its_process_is_an_error(ckptool, project, name, reason):
    words = (
        "gate",
        "net.pth",
        "-m",
        f"nets:{name}",
        "--format",
        "json",
        "--timeout",
        seconds(reason),
    )
    check_refused(ckptool(*words, cwd=project), reason)


@pytest.mark.parametrize("name", HARMLESS)
def test_code_that_changes_its_process_changes_no_verdict(ckptool, project, name):
    ran = ckptool("gate", "net.pth", "-m", f"nets:{name}", "--format", "json", cwd=project)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["checkpoints"][0]["path"] == "net.pth"
    assert own_lines(ran.err) == []
    assert "\x1b" not in ran.err
    assert len(ran.err) < 30_000


@pytest.mark.parametrize("name", ODD)
def test_code_that_breaks_its_process_gives_a_verdict_or_one_line(ckptool, project, name):
    ran = ckptool("gate", "net.pth", "-m", f"nets:{name}", "--format", "json", cwd=project)
    assert ran.code in (0, 2)
    assert json.loads(ran.out)["exit_code"] == ran.code
    assert len(own_lines(ran.err)) == (ran.code == 2)


@pytest.mark.parametrize(
    ("command", "name", "reason"),
    [
        ("verify", "exits", "exit status 0"),
        ("diff", "exits", "exit status 0"),
        ("verify", "ExitsInForward", "exit status 0"),
        ("verify", "InterruptsInForward", "KeyboardInterrupt"),
        ("diff", "InterruptsTheLoad", "KeyboardInterrupt"),
        ("gate", "ExitsInTheLoad", "exit status 0"),
        ("diff", "EndlessNames", "EndlessNames.named_modules() (nets.py:"),
        ("verify", "EndlessTraining", "EndlessTraining.children() (nets.py:"),
        ("gate", "EndlessBelow", "Part.named_buffers() (nets.py:"),
        ("diff", "EndlessKeys", "its keys do not end"),
        ("verify", "EndlessParameters", "longer than 8 s"),
    ],
)
def test_methods_that_do_not_return_are_an_error(ckptool, project, command, name, reason):
    words = (
        command,
        "net.pth",
        "-m",
        f"nets:{name}",
        "--format",
        "json",
        "--timeout",
        seconds(reason),
    )
    check_refused(ckptool(*words, cwd=project), reason)


@pytest.mark.parametrize("words", [("audit",), ("lock", "-o", "written.json")])
def test_commands_without_a_checkpoint_are_no_way_round(ckptool, project, words):
    ran = ckptool(*words, "-m", "nets:exits", cwd=project)
    check_refused(ran, "exit status 0")
    assert not (project / "written.json").exists()


def test_the_next_checkpoint_of_a_gate_is_judged_all_the_same(ckptool, project):
    (project / "ckptool.toml").write_text(
        '[[models]]\npath = "net.pth"\nmodule = "nets:exits"\n'
        '[[models]]\npath = "other.pth"\nmodule = "nets:does_nothing"\n'
    )
    (project / "other.pth").write_bytes((project / "net.pth").read_bytes())
    try:
        ran = ckptool("gate", "net.pth", "other.pth", "--format", "json", cwd=project)
    finally:
        (project / "ckptool.toml").unlink()
    assert ran.code == 2
    report = json.loads(ran.out)
    assert [entry["passed"] for entry in report["checkpoints"]] == [False, True]
    assert "exit status 0" in report["errors"][0]


def test_what_a_module_prints_is_cut_and_counted(ckptool, project):
    ran = ckptool("diff", "net.pth", "-m", "nets:shouts", cwd=project)
    assert "bytes of its output are not shown]" in ran.err
    assert ran.out.startswith("loads strictly")


def test_an_interrupt_ends_the_child_at_once(project):
    (project / "slow.py").write_text(
        "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\nclass Net: pass\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptool", "diff", "net.pth", "-m", "slow:Net"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    child = int(process.stderr.readline().removeprefix("| "))
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert process.returncode == 130
    assert "ended by SIGINT" in err
    assert out == ""
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_command_with_a_module_imports_no_torch_itself(project):
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom ckptool.cli import main\n"
        "r = CliRunner().invoke(main, sys.argv[1:])\n"
        "print(r.exit_code, 'torch' in sys.modules)"
    )
    for command in ("diff", "verify", "audit"):
        path = () if command == "audit" else ("net.pth",)
        ran = subprocess.run(
            [sys.executable, "-c", code, command, *path, "-m", "nets:does_nothing"],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout == "0 False\n", command

"""`ckptool run`: streams, exit codes, signals, other sitecustomize modules, child processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT
from tracing.conftest import run_traced, run_words

pytestmark = pytest.mark.process

NET = """
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(3, 3)
        self.mask = torch.triu(torch.ones(6, 6), 1)
"""
TRAIN = """
import torch
from net import Attention

model = Attention()
model.mask *= 2
torch.save(model.state_dict(), "model.pth")
"""
EVALUATE = """
import torch
from net import Attention

model = Attention()
print(model.load_state_dict(torch.load("model.pth")))
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    (folder / "train.py").write_text(TRAIN)
    (folder / "evaluate.py").write_text(EVALUATE)
    return folder


def run_script(folder, text, *options, **environment):
    (folder / "script.py").write_text(text)
    return run_traced((sys.executable, "script.py"), folder, *options, **environment)


def test_the_story_of_the_mask_without_naming_a_module(folder):
    """Training changes the mask, no file has it, and evaluation gets the constructor's 1s."""
    trained = run_traced((sys.executable, "train.py"), folder)
    assert trained.code == 0
    assert "mask" not in torch.load(folder / "model.pth")
    (finding,) = trained.findings("CK330")
    assert finding["key"] == "mask"
    assert finding["path"] == "model.pth"
    assert "of 0 and 1 when it was built" in finding["message"]
    assert "of 0 and 2 when it was saved" in finding["message"]
    assert finding["fix"].startswith('In net.py:10: self.register_buffer("mask", ...)')
    evaluated = run_traced((sys.executable, "evaluate.py"), folder)
    assert evaluated.out == "<All keys matched successfully>\n"
    (finding,) = evaluated.findings("CK233")
    assert "it has the constructor's value, float32 [6, 6] of 0 and 1" in finding["message"]
    (load,) = evaluated.report["loads"]
    assert (load["file"], load["matched"], load["where"]) == (
        str(folder / "model.pth"),
        2,
        "evaluate.py:6",
    )


def test_fail_on_fails_a_command_that_passed(folder):
    words = (sys.executable, "train.py")
    assert run_traced(words, folder, "--fail-on", "error").code == 1
    assert run_traced(words, folder, "--fail-on", "error", "--ignore", "CK330").code == 0
    assert run_traced((sys.executable, "-c", "exit(7)"), folder, "--fail-on", "error").code == 7


@pytest.mark.parametrize("format_", ["json", "sarif", "junit", "github", "html", "markdown"])
def test_every_format(folder, format_):
    (folder / "script.py").write_text(TRAIN)
    report = folder.parent / "report"
    command = [sys.executable, "-P", "-m", "ckptool", "run", "--format", format_, "-o", report]
    run = run_words([*command, "--", sys.executable, "script.py"], folder)
    assert run.code == 0, run.err
    assert "mask" in report.read_text()


def test_streams_pass_through_and_the_report_follows(folder):
    (folder / "script.py").write_text("import sys\nprint(sys.stdin.read())\nsys.exit('bye')\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ckptool", "run", "--", sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input="typed",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "bye\n"
    assert done.stdout.startswith("typed\nnothing was loaded into a module")
    assert "not checked: the command: none of its processes imported torch" in done.stdout


def test_a_signal_that_ends_the_command_is_in_the_exit_code(folder):
    run = run_script(folder, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert run.code == 128 + signal.SIGKILL


def test_sigterm_is_passed_on_and_the_report_is_written(folder):
    (folder / "script.py").write_text(
        f"{TRAIN}\nimport time\nprint('saved', flush=True)\ntime.sleep(60)\n"
    )
    report = folder.parent / "report.json"
    command = ("-P", "-m", "ckptool", "run", "-o", report, "--", sys.executable, "script.py")
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "saved\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert [f["code"] for f in json.loads(report.read_text())["findings"]] == ["CK330"]


def test_another_sitecustomize_runs_as_before(folder):
    other = folder / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import sys\nsys.marker = __file__\n")
    text = "import sys, sitecustomize\nprint(sys.marker, sitecustomize.__file__)\nprint(sys.path)\n"
    path = os.pathsep.join((str(ROOT), str(other)))
    (folder / "script.py").write_text(text)
    plain = run_words((sys.executable, "script.py"), folder, PYTHONPATH=path)
    traced = run_script(folder, text, PYTHONPATH=path)
    assert traced.out == plain.out
    assert "other/sitecustomize.py" in traced.out


def test_a_process_without_torch_imports_nothing_of_ours(folder):
    text = "import sys\nprint({'torch', 'ckptool', 'msgspec'} & {*sys.modules} or [])\n"
    assert run_script(folder, text).out == "[]\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_are_followed(folder, method):
    text = f"""
import multiprocessing as mp
import torch
from net import Attention


def work(name):
    model = Attention()
    model.mask *= 3
    torch.save(model.state_dict(), name)


if __name__ == "__main__":
    context = mp.get_context("{method}")
    processes = [context.Process(target=work, args=(f"{{i}}.pt",)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
"""
    run = run_script(folder, text)
    assert run.codes == ["CK330 mask"]
    (save,) = run.report["saves"]
    assert {Path(file).name for file in save["files"]} == {"0.pt", "1.pt"}


def test_an_error_of_ours_is_reported_and_ends_nothing(folder):
    text = f"""
import torch
import ckptool.tracing.save_facts as facts
import ckptool.tracing.wrapped_functions as wrapped

wrapped.describe_saved_modules = lambda *arguments: 1 / 0
{TRAIN}
print("done")
"""
    run = run_script(folder, text)
    assert (run.code, run.out) == (0, "done\n")
    assert [(s["what"], s["reason"]) for s in run.report["skipped"]] == [
        ("a save", "ZeroDivisionError: division by zero")
    ]


def test_the_state_of_random_generators_and_their_order_is_the_same(folder):
    text = """
import copy, random
import torch
from torch import nn
from net import Attention

torch.manual_seed(1)
random.seed(1)
model = Attention()
other = copy.deepcopy(model)
torch.save({"a": model.state_dict(), "b": other}, "both.pt")
model.load_state_dict(torch.load("both.pt", weights_only=False)["a"])
print(torch.rand(3), random.random(), torch.get_rng_state().sum(), model.mask._version)
"""
    (folder / "script.py").write_text(text)
    plain = run_words((sys.executable, "script.py"), folder)
    assert run_script(folder, text).out == plain.out
    assert plain.code == 0


def test_no_command_and_an_unknown_one(folder):
    assert run_traced((), folder).code == 2
    run = run_traced(("no-such-command-here",), folder)
    assert run.code == 2
    assert "no-such-command-here: no such command" in run.err

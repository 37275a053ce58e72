"""`ckptool explain`: formats, standard input, exit codes, long logs."""

import json
import shlex

import pytest
import torch
from rules.known_errors.error_texts import QUOTED
from torch import nn

import ckptool
from ckptool.rules.known_errors import log_text

TEXT = QUOTED["no GPU"][0]


def test_a_file(run_command, tmp_path):
    (tmp_path / "train.log").write_text(TEXT)
    ran = run_command("explain", "train.log", cwd=tmp_path)
    assert ran.code == 0
    assert ran.out.startswith("certain: the checkpoint was saved from a GPU")
    assert 'map_location="cpu"' in ran.out
    assert "CHECKPOINT stands for the path of your checkpoint" in ran.out


@pytest.mark.process
def test_standard_input(tmp_path):
    import subprocess
    import sys

    for words in ([], ["-"]):
        done = subprocess.run(
            [sys.executable, "-m", "ckptool", "explain", *words],
            input=TEXT.encode() + b"\n\xff\xfe odd bytes",
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0
        assert b"saved from a GPU" in done.stdout


def test_nothing_known_is_one_line_and_exit_2(run_command, tmp_path):
    (tmp_path / "train.log").write_text("epoch 1\nepoch 2\n")
    ran = run_command("explain", "train.log", cwd=tmp_path)
    assert ran.code == 2
    assert len(ran.out.splitlines()) == 1
    assert ran.out.startswith("no known error in 2 lines")


def _raise_in_torch(state):
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with pytest.raises(RuntimeError) as caught:
        module.load_state_dict(state(module.state_dict()))
    return str(caught.value)


PREFIXED = _raise_in_torch(lambda state: {f"module.{k}": t for k, t in state.items()})
RESIZED = _raise_in_torch(lambda state: {**state, "0.bias": state["0.bias"][:2]})


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (PREFIXED, "DataParallel"),
        (PREFIXED.partition("\n")[2], "DataParallel"),
        (PREFIXED.splitlines()[1].strip(), "in state_dict"),
        (
            PREFIXED.splitlines()[2].strip(),
            "certain: the checkpoint was saved from",
        ),
        (RESIZED.splitlines()[1].strip(), "0.bias"),
    ],
)
def test_the_message_itself_is_an_argument_also_a_part_of_it(run_command, text, cause):
    ran = run_command("explain", text)
    assert ran.code == 0
    assert cause in ran.out
    errors = ckptool.explain(text).errors
    assert len({error.line for error in errors}) == 1


def test_a_message_of_many_keys_is_one_error():
    keys = [f"layers.{n}.weight" for n in range(3000)]
    quoted = ", ".join(f'"{key}"' for key in keys)
    prefixed = ", ".join(f'"module.{key}"' for key in keys)
    text = (
        "RuntimeError: Error(s) in loading state_dict for Net:\n"
        f"\tMissing key(s) in state_dict: {quoted}. \n"
        f"\tUnexpected key(s) in state_dict: {prefixed}. "
    )
    assert {error.line for error in ckptool.explain(text).errors} == {1}


def test_no_file_and_a_folder(run_command, tmp_path):
    assert run_command("explain", "nope.log", cwd=tmp_path).code == 2
    ran = run_command("explain", ".", cwd=tmp_path)
    assert ran.code == 2
    assert "is a folder" in ran.err


def test_formats(run_command, tmp_path):
    (tmp_path / "train.log").write_text(TEXT + "\n" + QUOTED["dcp"][0])
    ran = run_command(
        "explain", "train.log", "--format", "json", "-o", "a.json", "--format", "markdown",
        cwd=tmp_path,
    )  # fmt: skip
    report = json.loads((tmp_path / "a.json").read_text())
    assert [error["name"] for error in report["errors"]] == ["saved-on-cuda", "dcp-missing-key"]
    assert report["errors"][0]["certainty"] == "certain"
    assert ran.out.startswith("### 2 causes; first, certain:")


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("html", "the checkpoint was saved from a GPU"),
        ("github", "::notice title=ckptool explain::"),
        ("gitlab", "[]"),
        ("sarif", '"results": []'),
        ("junit", 'tests="0"'),
    ],
)
def test_other_formats(run_command, tmp_path, format_, text):
    """A cause is not a finding: formats of findings have none."""
    (tmp_path / "train.log").write_text(TEXT)
    ran = run_command("explain", "train.log", "--format", format_, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert text in ran.out


def test_powershell_writes_utf16(run_command, tmp_path):
    outputs = []
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "train.log").write_text(TEXT, encoding=encoding)
        outputs.append(run_command("explain", "train.log", cwd=tmp_path).out)
    assert outputs[0] == outputs[1] != ""


def test_the_middle_of_a_long_log_is_not_checked(monkeypatch):
    monkeypatch.setattr(log_text, "MAX_CHARS", 4000)
    report = ckptool.explain("x\n" * 5000 + TEXT)
    assert report.errors[0].line == 5001
    assert "in the middle of the log" in report.skipped[0].what


def test_an_exception():
    report = ckptool.explain(RuntimeError(TEXT))
    assert report.errors[0].name == "saved-on-cuda"


def test_control_characters_are_not_printed(run_command, tmp_path):
    text = "ValueError: Can't find 'adapter_config.json' at 'a\x1b]0;title\x07b\x08`rm -rf`'"
    (tmp_path / "train.log").write_text(text)
    ran = run_command("explain", "train.log", cwd=tmp_path)
    assert "\x1b" not in ran.out
    assert "\x08" not in ran.out


MISSING = (
    "Traceback (most recent call last):\n"
    '  File "train.py", line 3, in <module>\n'
    '    model.load_state_dict(torch.load("old.pth"))\n'
    "RuntimeError: Error(s) in loading state_dict for Net:\n"
    '\tMissing key(s) in state_dict: "mask". \n'
)


def test_the_module_that_is_given_is_in_a_command_that_runs(run_command, tmp_path):
    """It had no -m: each command had to be completed by hand."""
    (tmp_path / "my net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Linear):\n"
        "    def __init__(self, d):\n        super().__init__(d, d)\n"
        '        self.register_buffer("mask", torch.arange(d))\n'
    )
    torch.save(torch.nn.Linear(3, 3).state_dict(), tmp_path / "old.pth")
    (tmp_path / "train.log").write_text(MISSING)
    words = ("explain", "train.log", "-m", "my net.py:Net", "-k", "d=3")
    ran = run_command(*words, "--format", "json", cwd=tmp_path)
    (command,) = (a["command"] for a in json.loads(ran.out)["errors"][0]["advice"] if a["command"])
    assert run_command(*shlex.split(command)[1:], cwd=tmp_path).code == 0
    written = torch.load(tmp_path / "old-migrated.pth")
    assert torch.equal(written["mask"], torch.arange(3))
    assert "PACKAGE.MODULE:NAME" not in run_command(*words, cwd=tmp_path).out


def test_the_module_and_the_checkpoint_in_python():
    options = {"module": "net:Net", "kwargs": {"d": 3, "name": "a b"}, "checkpoint": "runs/1.pth"}
    (error,) = ckptool.explain(MISSING, **options).errors
    words = shlex.split(error.advice[0].command)
    assert words[:5] == ["ckptool", "migrate", "runs/1.pth", "-o", "1-migrated.pth"]
    assert words[5:] == ["-m", "net:Net", "-k", "d=3", "-k", "name='a b'"]


def test_a_module_without_a_name_is_refused(run_command, tmp_path):
    (tmp_path / "train.log").write_text(MISSING)
    ran = run_command("explain", "train.log", "-m", "net.py", cwd=tmp_path)
    assert ran.code == 2
    assert "write net.py:Name" in ran.err


def test_a_checkpoint_is_not_a_log(run_command, tmp_path):
    """It said: no known error in 17 lines."""
    torch.save({"a": torch.ones(1)}, tmp_path / "old.pth")
    ran = run_command("explain", "old.pth", cwd=tmp_path)
    assert ran.code == 2
    command = ran.err.partition("is not a log: ")[2].partition(" shows")[0]
    assert run_command(*shlex.split(command)[1:], cwd=tmp_path).code == 0

"""`ckptool explain`: formats, standard input, exit codes, long logs."""

import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import torch
from junitparser import JUnitXml
from rules.known_errors.error_texts import QUOTED
from torch import nn

import ckptool
from ckptool.rules.known_errors import log_text

TEXT = QUOTED["no GPU"][0]
SARIF_SCHEMA = Path(__file__).parents[1] / "data/sarif-2.1.0-rtm.5.json"


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


def _read_messages(form, text):
    """Return what a consumer of the format shows as failed: (file, line, message)."""
    if form == "github":
        pattern = r"::error title=[^:]*?(?:,file=([^:,]*),line=(\d+))?::(.*)"
        found = [re.fullmatch(pattern, line) for line in text.splitlines()]
        return [(m[1] or "", int(m[2] or 0), m[3].replace("%0A", "\n")) for m in found if m]
    if form == "gitlab":
        return [
            (e["location"]["path"], e["location"]["lines"]["begin"], e["description"])
            for e in json.loads(text)
            if e["severity"] == "critical"
        ]
    if form == "sarif":
        report = json.loads(text)
        jsonschema.validate(report, json.loads(SARIF_SCHEMA.read_text()))
        (run,) = report["runs"]
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        assert all(rules[r["ruleIndex"]] == r["ruleId"] for r in run["results"])
        places = [r["locations"][0].get("physicalLocation") for r in run["results"]]
        return [
            (
                place["artifactLocation"]["uri"] if place else "",
                place["region"]["startLine"] if place else 0,
                r["message"]["text"],
            )
            for place, r in zip(places, run["results"], strict=True)
        ]
    cases = [case for suite in JUnitXml.fromstring(text.encode()) for case in suite]
    return [(c.classname, 0, f"{r.message}\n{r.text}") for c in cases for r in c.result]


@pytest.mark.parametrize("form", ["github", "gitlab", "sarif", "junit"])
def test_machine_formats_have_the_causes_and_their_fixes(form, run_command, tmp_path):
    """A cause is not a finding: these formats were empty."""
    (tmp_path / "train.log").write_text("epoch 1\n" + TEXT + "\n" + QUOTED["dcp"][0])
    ran = run_command("explain", "train.log", "--format", form, cwd=tmp_path)
    assert ran.code == 0, ran.err
    expected = json.loads(run_command("explain", "train.log", "--format", "json", cwd=tmp_path).out)
    messages = _read_messages(form, ran.out)
    assert len(messages) == len(expected["errors"]) == 2
    for (file, line, message), error in zip(messages, expected["errors"], strict=True):
        assert file == "train.log"
        assert line == error["line"] or form == "junit"
        for text in (error["cause"], error["certainty"], error["quote"]):
            assert text in message
        for advice in error["advice"]:
            assert advice["text"] in message
            assert (advice["command"] or advice["code"]) in message
    (tmp_path / "piped").mkdir()
    ran = run_command("explain", TEXT, "--format", form, cwd=tmp_path / "piped")
    (message,) = _read_messages(form, ran.out)
    assert (message[0], message[1]) == ({"gitlab": "."}.get(form, ""), int(form == "gitlab"))


@pytest.mark.parametrize("form", ["github", "gitlab", "sarif", "junit"])
def test_machine_formats_say_that_nothing_was_explained(form, run_command, tmp_path):
    """The exit code is 2, and the test report of JUnit had no test."""
    (tmp_path / "train.log").write_text("epoch 1\n")
    ran = run_command("explain", "train.log", "--format", form, cwd=tmp_path)
    assert (ran.code, "no known error in 1 line" in ran.out) == (2, True), ran


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

"""`ckptool verify`, `audit --input` and `diff --input` as they are typed."""

import json

import pytest
import torch
from verification import models

from ckptool import api

ATTENTION = ("-k", "d_in=3", "-k", "d_out=2", "-k", "context_length=6")


@pytest.mark.parametrize(
    ("file", "name", "code", "first"),
    [
        (
            "model.pth",
            "WithoutBuffers",
            1,
            "failed at device, forward, persistence: `mask` is on cpu",
        ),
        ("buffer.pth", "WithBuffer", 0, "verified on simulated cuda:0: load, device, forward"),
        ("buffer.safetensors", "WithBuffer", 0, "verified on simulated cuda:0: load, device"),
        ("model.pth", "WithBuffer", 1, "failed at load: 1 missing (mask)"),
    ],
)
def test_the_reference_case(run_command, samples, file, name, code, first):
    target = f"samples.attention:CausalAttention{name}"
    words = ("-m", target, *ATTENTION, "--device", "simulated", "--input", "float32[2,6,3]")
    ran = run_command("verify", samples / file, *words)
    assert (ran.code, ran.err) == (code, "")
    assert ran.out.startswith(first)
    assert "samples/attention.py:40" in ran.out or code == 0 or "missing" in first


def test_the_configuration_names_the_module(run_command):
    ran = run_command(
        "verify", "samples/buffer.pth", "--input", "float32[2,6,3]", "--format", "json"
    )
    report = json.loads(ran.out)
    assert report["command"] == "verify"
    assert [one["level"] for one in report["levels"]] == [
        "load", "device", "forward", "equality", "round trip", "persistence",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--input", "float32"), "--input float32: expected a dtype and a shape"),
        (("--device", "tpu"), "--device tpu: expected auto, cuda, cuda:1, simulated or cpu"),
        (("--input", "int64[1]", "--inputs", "a:b"), "--input and --inputs exclude each other"),
        (("--old", "none.pth"), "none.pth: "),
    ],
)
def test_what_cannot_be_checked_is_said_in_one_line(run_command, words, said):
    ran = run_command("verify", "samples/buffer.pth", *words)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_an_audit_with_inputs_knows_what_changes_and_what_is_used():
    report = api.audit("verification.models:Counting", inputs=("float32[2,4]",))
    (recent,) = report.unsaved
    assert (recent.key, recent.constancy) == ("recent", "mutated")
    line = models.__file__, int(recent.used.rsplit(":", 1)[1])
    with open(line[0], encoding="utf-8") as text:  # noqa: PTH123
        assert "self.recent + " in text.read().splitlines()[line[1] - 1]
    found = {finding.key: finding for finding in report.findings if finding.code == "CK107"}
    assert {key: one.level for key, one in found.items()} == {"ready": "error", "calls": "warning"}


def test_a_forward_pass_that_raises_is_not_looked_at_and_said():
    report = api.audit("verification.models:Raises", inputs=("float32[2,4]",))
    assert "it raised ValueError" in report.skipped[0].reason


def test_a_diff_with_inputs_runs_the_module(tmp_path):
    torch.save(models.RandomTable().state_dict(), tmp_path / "table.pth")
    path = tmp_path / "table.pth"
    plain = api.diff(path, module="verification.models:RandomTable")
    run = api.diff(path, module="verification.models:RandomTable", inputs=("float32[2,4]",))
    codes = {finding.code for finding in run.findings} - {f.code for f in plain.findings}
    assert codes == {"CK113"}

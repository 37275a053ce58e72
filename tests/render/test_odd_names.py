"""Names that no encoding, terminal or format likes: of checkpoints, and of the keys in them."""

import json
import os
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import pytest
import torch
from proportion import assert_in_proportion

import ckptool
from ckptool.policy import Policy, Waiver
from ckptool.render import RenderOptions, render
from ckptool.render.ci_results import make_relative
from ckptool.rules import RULES, Finding

NO_UTF8 = os.fsdecode(b"bad\xff.pth")
ESCAPE = "esc\x1b[31m.pth"
KEYS = ("a\nb", "50%::x", "]]>", "bell\x07", "lone\ud800", "<b>&", "`code`|", "nan")
LINES = ("table", "markdown", "html", "github", "gitlab", "sarif", "junit", "json")
STRICT = {"PYTHONIOENCODING": "utf-8:strict"}
"""As with a locale such as en_US.UTF-8: what is no UTF-8 is not written."""


@pytest.fixture
def folder(tmp_path):
    """Two files with names of that kind, that hold keys of that kind."""
    for name in (NO_UTF8, ESCAPE):
        torch.save({key: torch.tensor([float("nan")]) for key in KEYS}, tmp_path / name)
    return tmp_path


def parsed(format_: str, text: str) -> object:
    """Read the text back, as far as its format can be."""
    if format_ in {"json", "gitlab", "sarif"}:
        return json.loads(text)
    return ET.fromstring(text) if format_ == "junit" else text


@pytest.mark.parametrize("format_", LINES)
def test_every_format_says_odd_names_in_plain_text(ckptool, folder, format_):
    ran = ckptool("gate", NO_UTF8, ESCAPE, "--format", format_, cwd=folder, **STRICT)
    assert (ran.code, ran.err) == (1, "")
    assert not {"\x1b", "\x07", "\udcff"} & set(ran.out)
    assert parsed(format_, ran.out) is not None


def test_a_workflow_command_names_a_file_whose_name_is_no_utf8(ckptool, folder):
    ran = ckptool("inspect", "--values", NO_UTF8, "--format", "github", cwd=folder, **STRICT)
    assert "file=bad\\udcff.pth::`nan`" in ran.out


def test_sarif_names_a_file_by_its_bytes(run_command, folder):
    ran = run_command("gate", NO_UTF8, "--format", "sarif", cwd=folder)
    uris = {
        one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for one in json.loads(ran.out)["runs"][0]["results"]
    }
    assert uris == {"bad%FF.pth"}


def test_a_baseline_knows_a_file_whose_name_is_no_utf8(run_command, folder):
    words = ("gate", NO_UTF8, "--baseline", "known.json")
    assert run_command(*words, "--update-baseline", cwd=folder).code == 0
    assert run_command(*words, cwd=folder).code == 0
    assert '"path": "bad\\\\udcff.pth"' in (folder / "known.json").read_text()


def test_a_remote_checkpoint_is_named_as_it_is_in_every_format():
    assert make_relative("s3://bucket/a/model.pth", Path("/here")) == "s3://bucket/a/model.pth"
    assert make_relative("/here/model.pth", Path("/here")) == "model.pth"


def test_a_policy_matches_a_remote_checkpoint_by_its_whole_location():
    waiver = Waiver(rule="CK301", reason="known", path="s3://bucket/*")
    policy = Policy(waivers=(waiver,))
    assert policy.matching(waiver, "s3://bucket/a/model.pth")
    assert policy.relative("https://***@host/a.pth?***") == "https://host/a.pth"


@pytest.mark.parametrize(
    "facts",
    [
        ({"path": "m.pth", "what": "x"}, {"path": "/builds/7/m.pth", "what": "x"}),
        ({"where": "net.py:3"}, {"where": "/usr/lib/site-packages/net.py:14"}),
        ({"why": "set in net.py:3"}, {"why": "set in net.py:9"}),
    ],
)
def test_a_fingerprint_is_the_same_wherever_checkpoint_and_source_lie(facts):
    rule = RULES["CK301"]
    here, there = (Finding(rule, "w", f, rule.level, str(f.get("path", ""))) for f in facts)
    assert here.fingerprint == there.fingerprint


def test_a_fingerprint_is_another_where_the_path_is_what_was_found():
    rule = RULES["CK857"]
    a, b = (Finding(rule, "w", {"path": one}, rule.level, "policy.toml") for one in ("a*", "b*"))
    assert a.fingerprint != b.fingerprint


@pytest.mark.parametrize("format_", ["table", "markdown", "html"])
def test_keys_that_standard_output_cannot_hold_are_escaped(ckptool, tmp_path, format_):
    torch.save({"\u6f22": torch.ones(1)}, tmp_path / "keys.pth")
    words = ("inspect", tmp_path / "keys.pth", "--format", format_)
    ran = ckptool(*words, PYTHONIOENCODING="latin-1:strict", PYTHONUTF8="0")
    assert (ran.code, ran.err) == (0, "")
    assert r"\u6f22" in ran.out


@pytest.mark.parametrize(
    "words", [("lock", "-o", "s3://b/lock"), ("gate", "--baseline", "s3://b/known")]
)
def test_nothing_is_written_to_a_remote_place(run_command, folder, words):
    ran = run_command(*words, NO_UTF8, cwd=folder)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"ckptool: {words[1]} {words[2]}: remote outputs are not supported")


def test_a_lock_of_a_remote_checkpoint_reads_it(run_command, tmp_path):
    ran = run_command("lock", "https://127.0.0.1:1/model.pth", cwd=tmp_path)
    assert ran.code == 2
    assert ran.err.startswith("ckptool: https://127.0.0.1:1/model.pth: ")


SEPARATORS = ("a: b.pth", "a, b.pth", "100%.pth", "50%0A.pth", "x::error::y.pth", "a,file=b.pth")
LINE_ENDS = ("a\n::error::b.pth", "a\r\nb.pth")


def read_workflow_command(line: str) -> tuple[str, dict[str, str], str]:
    """Return command, properties and message, as GitHub's runner takes a line apart."""
    head, _, message = line.removeprefix("::").partition("::")
    command, _, properties = head.partition(" ")
    values = dict(one.split("=", 1) for one in properties.split(",") if one)
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        values = {name: value.replace(code, character) for name, value in values.items()}
    return command, values, message


@pytest.mark.parametrize("name", [*SEPARATORS, *LINE_ENDS])
@pytest.mark.parametrize("state", ["read", "refused"])
def test_every_annotation_names_the_file_that_it_is_of(run_command, tmp_path, name, state):
    torch.save({"nan": torch.tensor([float("nan")])}, tmp_path / name)
    if state == "refused":
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:300])
    ran = run_command("gate", f"./{name}", "--format", "github", cwd=tmp_path)
    lines = [read_workflow_command(line) for line in ran.out.splitlines()]
    assert {command for command, _, _ in lines} <= {"error", "warning", "notice"}
    assert {properties.get("file") for _, properties, _ in lines} == {name}
    sarif = json.loads(run_command("gate", f"./{name}", "--format", "sarif", cwd=tmp_path).out)
    for result in sarif["runs"][0]["results"]:
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert unquote(uri) == name
        assert ":" not in uri
    gitlab = json.loads(run_command("gate", f"./{name}", "--format", "gitlab", cwd=tmp_path).out)
    assert {entry["location"]["path"] for entry in gitlab} == {name}


def test_many_checkpoints_make_no_square_of_junit(tmp_path):
    paths = [tmp_path / f"{i}.pth" for i in range(20)]
    for path in paths:
        torch.save({"nan": torch.tensor([float("nan")])}, path)
    reports = {n: ckptool.gate(paths[:n], values=False) for n in (10, 20)}
    assert_in_proportion(lambda n: render("junit", reports[n], RenderOptions()), 10)

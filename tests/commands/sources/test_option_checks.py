"""Options that are inconsistent, or would be left out: one line and exit 2, never silence."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from command_runs import LINEAR
from torch import nn

from ckptool import api
from ckptool.cli.parsing import parse_kwargs
from ckptool.compare.digest import read_saved_digest
from ckptool.config import load_config, read_config
from ckptool.errors import ConfigError, ModuleError, PlanError, ReadError, UsageError
from ckptool.migration.plan.plan_file import parse_plan

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("function", "given", "option"),
    [
        (api.diff, {"new": "new.pth", "module": "torch.nn:Linear"}, "-m"),
        (api.diff, {"new": "new.pth", "kwargs": {"bias": False}}, "-k"),
        (api.diff, {"new": "new.pth", "inputs": ("float32[2]",)}, "--input"),
        (api.verify, {"old_module": "torch.nn:Linear"}, "--old-module"),
        (api.verify, {"tolerance": float("nan")}, "--tolerance nan"),
        (api.verify, {"tolerance": -1.0}, "--tolerance -1.0"),
        (api.lock, {"inputs": ("float32[2]",)}, "--input"),
        (api.lock, {"tolerances": {"cpu": 1.0}}, "--tolerance"),
        (api.lock, {"kwargs": {"bias": False}}, "-k"),
        (api.migrate, {"old_module": "torch.nn:Linear"}, "--old-module"),
        (api.migrate, {"device": "cuda"}, "--device"),
        (api.migrate, {"inputs": ("float32[2]",)}, "--input"),
        (api.migrate, {"tolerance": 1.0}, "--tolerance"),
        (api.gate, {"plans": ("plan.toml",)}, "--plan"),
        (api.gate, {"base": "."}, "--base"),
        (api.verify, {"base": ".", "module": "torch.nn:Linear"}, "--base"),
        (api.migrate, {"base": ".", "to": "pth", "dry_run": True}, "--base"),
        (api.diff, {"base": ".", "module": "torch.nn:Linear"}, "--base"),
        (api.migrate, {"merge_adapter": "base"}, "--merge-adapter writes a new folder"),
        (api.migrate, {"merge_adapter": "base", "inject": {"a": "zeros"}}, "--inject"),
        (api.migrate, {"merge_adapter": "base", "emit_hook": "a.py"}, "--emit-hook"),
        (api.migrate, {"merge_adapter": "base", "at": "model"}, "--at"),
        (api.current, {"module": "net:Missing"}, "-m net:Missing"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(function, given, option, linear):
    with pytest.raises(UsageError) as refused:
        function(linear, **given)
    assert str(refused.value).startswith(option)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inputs": ("nonsense",)}, UsageError, "--input nonsense: expected a dtype and a shape"),
        ({"inputs": "net:make"}, UsageError, "--inputs net:make"),
        (
            {"inputs": ("float32[1,2]",), "old_module": "torch.nn:Missing"},
            ModuleError,
            "torch.nn has no 'Missing'",
        ),
        ({"from_": "missing.pth"}, ReadError, "missing.pth: no such file"),
    ],
)
def test_a_dry_run_refuses_what_the_real_run_refuses(options, error, message, linear, tmp_path):
    kwargs = {"in_features": 2, "out_features": 3}
    for target in ({"dry_run": True, "to": "pth"}, {"target": tmp_path / "new.pth"}):
        with pytest.raises(error) as refused:
            api.migrate(linear, module="torch.nn:Linear", kwargs=kwargs, **target, **options)
        assert message in str(refused.value)
    assert not (tmp_path / "new.pth").exists()


def test_history_refuses_a_module_that_chooses_no_chain(tmp_path, run_command):
    (tmp_path / "ckptool.toml").write_text('[[models]]\npath = "*.pth"\nmodule = "net:Net"\n')
    ran = run_command("history", "-m", "net:Other", cwd=tmp_path)
    message = (
        "ckptool: -m net:Other: chooses a chain, and is not in [[models]] of the configuration, "
        "only net:Net: name the folder with --chain\n"
    )
    assert (ran.code, ran.err) == (2, message)


def test_a_lock_of_a_module_has_no_place():
    kwargs = {"in_features": 2, "out_features": 3}
    with pytest.raises(UsageError, match=r"^--at is a key path in a checkpoint"):
        api.lock(module="torch.nn:Linear", kwargs=kwargs, at="state_dict")


def test_fresh_is_for_a_live_module():
    with pytest.raises(UsageError, match=r"^fresh= builds a module like a live one"):
        api.audit("torch.nn:Linear", fresh=nn.Identity)


@pytest.mark.parametrize(
    "words", [("inspect",), ("diff", *LINEAR), ("digest",), ("gate", "--format", "sarif")]
)
def test_a_report_never_replaces_the_checkpoint_that_it_is_about(run_command, linear, words):
    before = linear.read_bytes()
    ran = run_command(*words, linear, "-o", linear)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        f"ckptool: -o {linear}: is an input of this command and would be overwritten ({linear})\n"
    )
    assert linear.read_bytes() == before


def test_textconv_takes_no_format(run_command, linear):
    ran = run_command("digest", linear, "--textconv", "--format", "json")
    assert (ran.code, ran.err) == (
        2,
        "ckptool: --textconv has a format of its own: leave --format out\n",
    )


def test_show_policy_shows_the_baseline_that_is_named(run_command, tmp_path):
    ran = run_command("gate", "--show-policy", "--baseline", "known.json", cwd=tmp_path)
    assert "baseline             known.json        --baseline" in ran.out


@pytest.mark.parametrize("pair", ["a={[]: 1}", "a={{}}", f"a={DEEP}"])
def test_an_argument_that_is_no_literal_is_one_line(pair):
    with pytest.raises(UsageError, match="is not a Python literal"):
        parse_kwargs([pair])


def test_files_that_are_nested_too_deep_are_one_line(tmp_path):
    text = tmp_path / "deep.json"
    text.write_text(DEEP)
    with pytest.raises(UsageError):
        parse_kwargs([], text)
    with pytest.raises(ConfigError):
        read_config(text)
    with pytest.raises(PlanError):
        parse_plan(f"ops = {DEEP}")
    text.write_text('{"odd": ' + DEEP)
    with pytest.raises(ReadError):
        read_saved_digest(text, tmp_path / "model.pth")


def test_a_pyproject_whose_tool_is_no_table_has_no_section(tmp_path):
    (tmp_path / "pyproject.toml").write_text("tool = 3\n")
    assert load_config(tmp_path).file is None
    assert read_config(tmp_path / "pyproject.toml").settings.models == ()


@pytest.mark.parametrize("format_", ["github", "gitlab", "sarif", "junit"])
def test_every_format_for_ci_says_that_a_digest_differs(run_command, linear, tmp_path, format_):
    run_command("digest", linear, "--format", "json", "-o", tmp_path / "saved.json")
    torch.save({"weight": torch.ones(3)}, linear)
    ran = run_command("digest", linear, "--against", tmp_path / "saved.json", "--format", format_)
    assert ran.code == 1
    assert f"linear.pth differs from {tmp_path / 'saved.json'}: 1 changed, 1 missing" in ran.out
    assert "no findings" not in ran.out


@pytest.mark.parametrize("format_", ["github", "gitlab", "sarif", "junit"])
def test_every_format_for_ci_says_what_could_not_be_digested(run_command, tmp_path, format_):
    ran = run_command("digest", tmp_path / "missing.pth", "--format", format_)
    assert ran.code == 2
    assert "missing.pth: no such file" in ran.out


def test_gitlab_shows_all_entries_at_a_path_from_the_root(run_command, linear):
    ran = run_command("diff", linear, *LINEAR[:4], "--format", "gitlab", cwd=linear.parent)
    assert ran.code == 2
    words = ("inspect", linear, linear.parent / "missing.pth", "--format", "gitlab")
    ran = run_command(*words, cwd=linear.parent)
    assert {one["location"]["path"] for one in json.loads(ran.out)} <= {"linear.pth", "missing.pth"}


def test_a_waiver_that_nobody_looked_for_is_not_said_to_be_unused(linear, monkeypatch):
    monkeypatch.chdir(linear.parent)
    (linear.parent / "ckptool.toml").write_text(
        "[[waivers]]\nrule = 'CK401'\nreason = 'values'\n"
        "[[waivers]]\nrule = 'CK201'\nreason = 'no module'\n"
        "[[waivers]]\nrule = 'CK301'\nreason = 'the file'\n"
    )
    unused = [f.key for f in api.gate(linear, values=False).findings if f.code == "CK858"]
    assert unused == ["CK301"]
    looked = [f.key for f in api.gate(linear).findings if f.code == "CK858"]
    assert looked == ["CK301", "CK401"]


def test_a_baseline_is_not_outdated_by_values_that_nobody_looked_at(linear):
    torch.save({"weight": torch.tensor([float("nan")])}, linear)
    baseline = linear.parent / "known.json"
    assert api.gate(linear, baseline=baseline, update_baseline=True).exit_code == 0
    assert [f.code for f in api.gate(linear, baseline=baseline, values=False).findings] == []


def test_a_path_is_the_same_in_findings_and_report_however_it_is_written(linear, monkeypatch):
    monkeypatch.chdir(linear.parent)
    torch.save({"weight": torch.ones(3)}, linear)
    report = api.diff("./linear.pth", module=nn.Linear(2, 3))
    assert {f.path for f in report.findings} <= {report.path}


@pytest.mark.process
def test_a_command_that_is_interrupted_exits_130(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\nprint('building', flush=True)\ntime.sleep(60)\nclass Net: pass\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptool", "audit", "-m", "slow:Net"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "| building\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err.splitlines()[-1]) == (130, "ckptool: ended by SIGINT")


@pytest.mark.parametrize("function", [api.diff, api.lock, api.digest])
def test_a_place_that_is_nowhere_is_no_empty_state(function, linear):
    given = {"new": linear} if function is api.diff else {}
    with pytest.raises(UsageError, match=r"linear.pth: no state at --at nope; it has: \."):
        function(linear, at="nope", **given)


def test_what_is_given_twice_is_refused(run_command, linear):
    words = ("--inject", "mask=zeros", "--inject", "mask=constructor")
    ran = run_command("migrate", linear, "--dry-run", *words)
    assert (ran.code, ran.err) == (2, "ckptool: --inject mask=...: is given twice\n")


def test_a_plan_is_not_saved_in_the_place_of_the_result(linear):
    target = linear.with_name("new.safetensors")
    with pytest.raises(UsageError, match=r"^--save-plan and -o are the same file"):
        api.migrate(linear, target, save_plan=target)


def test_a_fault_in_what_was_asked_names_no_line_of_ours(run_command, linear):
    words = ("verify", linear, *LINEAR, "--inputs", "torch.nn:nope", "--device", "cpu")
    ran = run_command(*words)
    assert ran.code == 2
    assert "torch.nn has no 'nope'" in ran.err
    assert "inputs.py" not in ran.err

"""Commands in fixes run as they stand, and the finding goes."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import modules_for_tests
import pytest
import torch
from command_runs import run_in_process
from rules.cases import Case
from rules.fixes.fix_kinds import COMMANDS
from rules.fixes.fix_runs import ask_again, find_command, find_own, list_cases, run_migrate
from safetensors.torch import load_file

from ckptool import api

CODE_CASES = ("renamed_beyond_recognition", "a_list_under_the_key_of_a_parameter")
"""Cases whose fix is code, tried elsewhere."""


def is_command_case(case: Case) -> bool:
    return not case.name.endswith(CODE_CASES)


@pytest.mark.parametrize(
    "case", [*filter(is_command_case, list_cases(*COMMANDS))], ids=lambda case: case.name
)
def test_a_command_is_run_and_the_finding_goes(case, tmp_path, calls, monkeypatch):
    finding = find_own(case, case.make(tmp_path))
    new_path = run_migrate(find_command(finding), tmp_path, calls, monkeypatch)
    if case.code == "CK851":
        modules_for_tests.BufferMask().load_state_dict(torch.load(new_path))
        return
    if case.code == "CK854":
        assert new_path.suffix == ".safetensors"
        return
    if case.code in {"CK852", "CK855"}:
        assert_policy_allows(new_path, finding)
        return
    assert (case.code, finding.key) not in ask_again(calls, new_path)


def assert_policy_allows(path: Path, finding: Any) -> None:
    """Ask plain torch, with weights_only=True: there is no object; the dtype is an allowed one."""
    state = torch.load(path)
    if finding.code == "CK852":
        allowed = finding.message.partition("allows ")[2].split(",")[0]
        assert {str(tensor.dtype) for tensor in state.values()} == {f"torch.{allowed}"}


@pytest.mark.parametrize("case", list_cases("CK218"), ids=lambda case: case.name)
def test_a_plan_of_a_fix_is_run(case, tmp_path, calls):
    """All plans of the file's findings together: one operation each."""
    report = case.make(tmp_path)
    fixes = [finding.fix for finding in report.findings if finding.code == "CK218"]
    if not all("In plan.toml: " in fix for fix in fixes):
        finding = next(f for f in report.findings if f.code == "CK218")
        options = shlex.split(find_command(finding))[1:]
    else:
        ops = [re.search(r"ops = \[(.*)\]$", fix)[1] for fix in fixes]
        (tmp_path / "plan.toml").write_text(f"ops = [{', '.join(ops)}]\n")
        options = ["migrate", str(calls.paths[-1]), "-o", "NEW.pth", "-m", str(calls.module)]
        options += [w for k, v in calls.kwargs.items() for w in ("-k", f"{k}={v!r}")]
        options += ["--plan", "plan.toml"]
    done = run_in_process(*options, cwd=tmp_path, PYTHONPATH=":".join(sys.path))
    assert done.code == 0, done.out + done.err
    new_path = tmp_path / options[options.index("-o") + 1]
    assert "CK218" not in {code for code, _ in calls.ask(new_path)}


def test_a_device_is_taken_off(tmp_path, calls):
    (case,) = list_cases("CK307")
    finding = find_own(case, case.make(tmp_path))
    path = calls.paths[-1]
    call = finding.fix.partition(", or")[0]
    state = eval(call, {"torch": torch, "path": path})
    torch.save(state, tmp_path / "fixed.pth")
    assert "CK307" not in {code for code, _ in calls.ask(tmp_path / "fixed.pth")}


@pytest.mark.parametrize("case", list_cases("CK501"), ids=lambda case: case.name)
def test_a_tie_that_is_left_out_loads_as_the_fix_says(case, tmp_path, calls, monkeypatch):
    finding = find_own(case, case.make(tmp_path))
    if "ckptool migrate" in finding.fix:
        new_path = run_migrate(find_command(finding), tmp_path, calls, monkeypatch)
        assert (case.code, finding.key) not in calls.ask(new_path)
        return
    assert "strict=False: nothing is lost" in finding.fix
    module = calls.build_module()
    loaded = module.load_state_dict(load_file(calls.paths[-1]), strict=False)
    assert loaded.missing_keys
    state = module.state_dict()
    assert all(torch.equal(state[key], state[finding.key]) for key in loaded.missing_keys)


def test_a_key_of_the_old_file_gets_the_new_name(tmp_path, calls):
    (case,) = [case for case in list_cases("CK211") if not is_command_case(case)]
    finding = find_own(case, case.make(tmp_path))
    code = re.search(r"state_dict\[.*$", finding.fix)
    assert code is not None
    old_path, new_path = calls.paths
    state_dict = torch.load(old_path)
    exec(code[0], {"state_dict": state_dict})
    torch.save(state_dict, tmp_path / "renamed.pth")
    found = api.diff(tmp_path / "renamed.pth", new_path).findings
    assert finding.key not in {other.key for other in found}

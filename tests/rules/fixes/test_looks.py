"""Commands in fixes that show what to decide: they run as they stand, and name the culprit."""

import re
import sys
import tomllib

import pytest
import torch
from command_runs import run_in_process
from compare.models import WithHead
from rules.fixes.fix_runs import find_own, list_cases, take_command

IMPORTS = {"PYTHONPATH": ":".join(sys.path)}


def test_an_audit_names_what_is_not_saved(tmp_path):
    (case,) = list_cases("CK113")
    finding = find_own(case, case.make(tmp_path))
    done = run_in_process(*take_command(finding.fix, "audit"), **IMPORTS)
    assert done.code == 1
    assert re.search(r"CK10\d\s+`?\w+", done.out)


RUNS = list_cases("CK230", "CK231", "CK232")


@pytest.mark.parametrize("case", RUNS, ids=lambda case: case.name)
def test_a_diff_explains_the_keys_of_a_load(case, tmp_path):
    finding = find_own(case, case.make(tmp_path))
    command = "diff" if "ckptool diff" in finding.fix else "migrate"
    words = take_command(finding.fix, command)
    if "-o" in words:
        words[words.index("-o") + 1] = str(tmp_path / "migrated.pt")
    if "-k" not in words:  # the module was built before the run
        assert run_in_process(*words, **IMPORTS).err.count("-k in_features=<int>") == 1
        words += ["-k", "in_features=2", "-k", "out_features=2"]
    done = run_in_process(*words, **IMPORTS)
    if command == "migrate":
        assert "loads strictly" in done.out
        return
    assert done.code == 1 or "CK204" in done.out
    assert finding.key in done.out


@pytest.mark.parametrize("case", list_cases("CK401"), ids=lambda case: case.name)
def test_a_diff_shows_what_changed_since(case, tmp_path, calls):
    finding = find_own(case, case.make(tmp_path))
    words = take_command(finding.fix, "diff")
    path = calls.paths[0]
    earlier = tmp_path / f"earlier{path.suffix}"
    write_finite(path, earlier)
    words[words.index("EARLIER")] = str(earlier)
    done = run_in_process(*words, **IMPORTS)
    assert finding.key.rpartition(".")[2] in done.out


def write_finite(path, earlier):
    """Write the file of a case with zeros in the place of all values."""
    from safetensors.torch import load_file, save_file

    if path.suffix == ".safetensors":
        zeros = {key: tensor * 0 for key, tensor in load_file(path).items()}
        save_file({key: torch.nan_to_num(t) for key, t in zeros.items()}, earlier)
        return
    torch.save(zero(torch.load(path)), earlier)


def zero(value):
    if isinstance(value, dict):
        return {key: zero(item) for key, item in value.items()}
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else value


def test_outputs_are_recorded_again(tmp_path):
    case = next(c for c in list_cases("CK805") if "forward_changed" in c.name)
    finding = find_own(case, case.make(tmp_path))
    words = take_command(finding.fix, "lock")
    words[words.index("PACKAGE.MODULE:FUNCTION")] = "compare.models:batch"
    done = run_in_process(*words, **IMPORTS)
    assert done.code == 0, done.out + done.err
    again = ("gate", words[1], "-m", "compare.models:Drifting", "--golden", words[-2])
    assert "CK805" not in run_in_process(*again, **IMPORTS).out


def test_a_plan_is_written_as_far_as_it_is_known(tmp_path):
    (case,) = list_cases("CK806")
    finding = find_own(case, case.make(tmp_path))
    words = take_command(finding.fix, "migrate")
    done = run_in_process(*words, cwd=tmp_path, **IMPORTS)
    assert "CK201" in done.out + done.err
    plan = tmp_path / words[-1]
    steps = re.sub(r"(?m)^# (?=\[\[|\w+ = )", "", plan.read_text())
    torch.save(WithHead().state_dict(), tmp_path / "donor.pth")
    for operation in tomllib.loads(steps)["ops"]:
        key = operation["key"]
        steps = steps.replace("file:DONOR#KEY", f"file:donor.pth#{key}", 1)
    plan.write_text(steps)
    words = [*words[: words.index("--dry-run")], "--plan", plan.name, "-o", "new.pth"]
    done = run_in_process(*words, cwd=tmp_path, **IMPORTS)
    assert done.code == 0, done.out + done.err
    WithHead().load_state_dict(torch.load(tmp_path / "new.pth"))


@pytest.mark.parametrize("case", list_cases("CK210"), ids=lambda case: case.name)
def test_a_dry_run_shows_what_a_migration_asks(case, tmp_path):
    finding = find_own(case, case.make(tmp_path))
    done = run_in_process(*take_command(finding.fix, "migrate"), cwd=tmp_path, **IMPORTS)
    assert done.code in {1, 2}
    assert re.search(r"\d open questions?", done.err)
    assert not (tmp_path / "model-migrated.pth").exists()

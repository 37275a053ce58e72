"""Findings with one cause are one problem: grouped, named, and gone once the cause is."""

import json
import random
import re

import pytest
import torch
from rules.cases import CASES
from torch import nn

import ckptool
from ckptool.reports.problems import group_by_cause
from ckptool.rules.causes import attribute_findings
from ckptool.rules.registry import RULES, Finding

POLICY = """
[[models]]
path = "*"
module = "{name}:Net"
inputs = ["{name}:make_inputs"]
[require]
strict = true
verify = ["load", "device", "forward", "persistence"]
device = "simulated"
"""
SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(4, 4)
{attributes}

    def forward(self, x):
        return {expression}


def make_inputs():
    return torch.ones(2, 4)
"""
MASK = "        self.mask = torch.ones(4, 4)"
NOISE = "        self.noise = torch.rand(4, 4)"
BANKS = "        self.banks = [torch.ones(4, 4), torch.ones(4, 4)]"


@pytest.fixture
def write_net(tmp_path, monkeypatch):
    """Write a module and a file of it, and return the gate's report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, attributes: list[str], expression: str, files=("a.pth",)):
        source = SOURCE.format(attributes="\n".join(attributes), expression=expression)
        (tmp_path / f"{name}.py").write_text(source)
        (tmp_path / "policy.toml").write_text(POLICY.format(name=name))
        namespace: dict[str, object] = {}
        exec(source, namespace)
        for file in files:
            torch.save(namespace["Net"]().state_dict(), tmp_path / file)
        return ckptool.gate(list(files), config=ckptool_config(tmp_path / "policy.toml"))

    return write


def ckptool_config(path):
    from ckptool.config import read_config

    return read_config(path)


def test_one_attribute_is_one_problem(write_net):
    """Its findings were nine, with three different fixes."""
    report = write_net("one_cause", [MASK], "self.q(x) @ self.mask")
    (problem,) = group_by_cause(report.findings)
    assert problem.main.code == "CK101"
    assert {f.code for f in problem.consequences} == {"CK110", "CK111", "CK701", "CK856"}
    assert problem.level == "error"
    assert ckptool.text(report).count("fix:") == 1
    assert "Problems: 1 error (" in ckptool.text(report)
    assert report.checkpoints[0].verdict.startswith("failed: 1 error (")


def test_the_fix_of_a_problem_takes_its_consequences_away(write_net):
    report = write_net("three_causes", [MASK, NOISE, BANKS], TWO_OPERATIONS)
    problems = group_by_cause(report.findings)
    codes = sorted(p.main.code for p in problems if p.level == "error")
    assert codes == ["CK101", "CK101", "CK102"]
    lines = {}
    for problem in problems:
        code, target = re.match(r"In .*?: (.*?) instead of ([\w.]+) = ", problem.main.fix).groups()
        lines[target] = code
    attributes = [
        "        " + lines[target].replace("...", line.partition(" = ")[2])
        for line in (MASK, NOISE, BANKS)
        for target in [line.strip().partition(" = ")[0]]
    ]
    fixed = write_net("three_fixed", attributes, TWO_OPERATIONS)
    assert {f.level for f in fixed.findings if f.code != "CK701"} <= {"note"}
    assert fixed.exit_code == 0


TWO_OPERATIONS = "(self.q(x) @ self.mask + x @ self.noise) @ self.banks[0] @ self.banks[1]"


def test_files_of_one_module_share_its_problem(write_net):
    report = write_net("shared_cause", [MASK], "self.q(x) @ self.mask", ("a.pth", "b.pth"))
    (problem,) = group_by_cause(report.findings)
    assert problem.paths == ("a.pth", "b.pth")
    assert "Problems: all 2 checkpoints: 1 error" in ckptool.text(report)


def test_what_needs_several_causes_is_said_to(write_net):
    report = write_net("several", [NOISE, NOISE.replace("noise", "other")], BOTH_NOISES)
    device = next(f for f in report.findings if f.code == "CK856" and f.key == "device")
    assert device.is_consequence
    assert device.cause_count == 2
    assert "(together with another problem)" in ckptool.text(report)


BOTH_NOISES = "self.q(x) @ self.noise @ self.other"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ff = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.norm = nn.BatchNorm1d(4)
        self.mask = torch.ones(4, 4)


class Deep(nn.Module):
    def __init__(self, n: int = 300):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(n))


@pytest.fixture
def nothing_fits(tmp_path):
    torch.save({"other": torch.ones(2)}, tmp_path / "empty.pth")
    return ckptool.diff(tmp_path / "empty.pth", module="rules.test_causes:Deep")


def test_three_hundred_layers_are_few_problems(nothing_fits):
    """GitHub got 7,505 lines."""
    problems = group_by_cause(nothing_fits.findings)
    assert [problem.main.code for problem in problems] == ["CK201", "CK101", "CK204"]
    missing = Deep().load_state_dict({"other": torch.ones(2)}, strict=False).missing_keys
    named = {f.key for f in problems[0].findings if f.code in {"CK201", "CK202"}}
    assert named == {key for key in missing if "num_batches_tracked" not in key}
    assert len(ckptool.text(nothing_fits, "github").splitlines()) <= 11
    text = ckptool.text(nothing_fits)
    assert len(text.splitlines()) < 60


def test_no_name_is_shown_twice(nothing_fits):
    """Two lines said the same of `layers.*.ff.*.weight`, of one shape and of another."""
    shown = [
        line.split("`")[1]
        for line in ckptool.text(nothing_fits).splitlines()
        if "is a parameter of the module" in line or "missing parameter" in line
    ]
    assert len(shown) == len(set(shown)) > 2


def test_annotations_are_ten_and_a_summary(tmp_path):
    state = {f"name{chr(97 + i)}{chr(97 + j)}": torch.ones(1) for i in range(5) for j in range(5)}
    torch.save(state, tmp_path / "many.pth")
    report = ckptool.diff(tmp_path / "many.pth", module=nn.Linear(1, 1))
    lines = ckptool.text(report, "github").splitlines()
    assert len([line for line in lines if "not checked" not in line]) <= 11
    many = ckptool.diff(tmp_path / "many.pth", module=nn.Linear(1, 1)).findings
    assert len(many) >= 25


def test_sarif_names_the_cause_as_a_related_location(write_net):
    report = write_net("sarif_cause", [MASK], "self.q(x) @ self.mask")
    results = json.loads(ckptool.text(report, "sarif"))["runs"][0]["results"]
    assert len(results) == len(report.findings)
    related = {r["ruleId"]: r["relatedLocations"][0]["message"]["text"] for r in results}
    assert related["CK110"].startswith("cause: CK101 unregistered-tensor")
    assert related["CK101"].startswith("consequence: CK110")
    assert {r["properties"]["cause"] for r in results} == {report.findings[0].cause}


def test_a_consequence_alone_is_a_problem(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pth")
    report = ckptool.audit("rules.test_causes:Block", policy=ckptool.Policy(select=("CK110",)))
    (problem,) = group_by_cause(report.findings)
    assert (problem.main.code, problem.consequences) == ("CK110", ())


@pytest.mark.parametrize("case", [c for c in CASES if c.fires][::3], ids=lambda case: case.name)
def test_the_order_of_the_findings_decides_nothing(case, tmp_path):
    """And each finding has a cause, of which one rule at least says what is wrong."""
    findings = [
        Finding(
            RULES[f.code],
            f.key,
            f.facts,
            next(level for level in type(RULES[f.code].level) if level.word == f.level),
            f.path,
        )
        for f in case.make(tmp_path).findings
    ]
    shuffled = findings[:]
    random.Random(case.name).shuffle(shuffled)
    in_order = group_names(findings)
    assert in_order == group_names(shuffled)
    for name in {cause for _, cause, _ in in_order}:
        assert any(not is_other for _, cause, is_other in in_order if cause == name)


def group_names(findings):
    pairs = zip(findings, attribute_findings(findings), strict=True)
    return sorted((f.rule.code + f.key + f.path, a.cause, a.is_consequence) for f, a in pairs)

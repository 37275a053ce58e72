"""All rules over all cases: each fires where it must, and nowhere else."""

import string
from importlib import import_module
from pathlib import Path

import pytest
from render.widths import assert_no_word_is_cut
from rules.cases import CASES

from ckptool.reports.common import Report
from ckptool.rules import RULES

for _file in sorted(Path(__file__).parent.glob("cases_*.py")):
    import_module(f"rules.{_file.stem}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case, tmp_path):
    """It says what it must and no more, and all of it can be read, in a narrow terminal too."""
    report = case.make(tmp_path)
    findings = report.findings
    assert {finding.code for finding in findings} == case.expected
    for finding in findings:
        assert "{" not in finding.message
        assert len(finding.message) > 20
        assert finding.level in {"note", "warning", "error"}
    if isinstance(report, Report):
        assert_no_word_is_cut(report)


@pytest.mark.parametrize("code", sorted(RULES))
def test_every_rule_has_a_case_and_a_near_miss(code):
    kinds = {case.fires for case in CASES if case.code == code}
    assert kinds == {True, False}


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.code)
def test_every_rule_says_why_and_how_to_fix(rule):
    assert rule.why.endswith(".")
    assert rule.fix
    assert rule.name == rule.name.lower()


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.code)
def test_every_rule_has_an_example_that_is_python(rule):
    assert rule.example.strip()
    compile(rule.example, rule.code, "exec")
    assert all(len(line) <= 90 for line in rule.example.splitlines())


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.code)
def test_messages_name_facts_and_nothing_else(rule):
    for text in (rule.message, rule.fix):
        assert all(
            name is None or name.isidentifier() for _, name, _, _ in string.Formatter().parse(text)
        )

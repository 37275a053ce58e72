import pytest

from ckptool.errors import UsageError
from ckptool.policy import ExitCode, Policy, judge, resolve_rule_codes
from ckptool.rules import RULES, Level
from ckptool.rules.registry import Finding

NOTE, WARNING, ERROR = (
    Finding(RULES[code], "k", {}, level)
    for code, level in (("CK106", Level.NOTE), ("CK101", Level.WARNING), ("CK201", Level.ERROR))
)


@pytest.mark.parametrize(
    ("finding", "fail_on", "code"),
    [
        (NOTE, Level.NOTE, ExitCode.FAILED),
        (NOTE, Level.WARNING, ExitCode.PASSED),
        (WARNING, Level.WARNING, ExitCode.FAILED),
        (WARNING, Level.ERROR, ExitCode.PASSED),
        (ERROR, Level.ERROR, ExitCode.FAILED),
        (ERROR, None, ExitCode.PASSED),
    ],
)
def test_fail_on(finding, fail_on, code):
    assert judge([finding], Policy(fail_on=fail_on)).exit_code == code


def test_a_difference_fails_whatever_the_level_unless_nothing_ever_fails():
    assert judge([], Policy(), differs=True).exit_code == ExitCode.FAILED
    assert judge([], Policy(fail_on=None), differs=True).exit_code == ExitCode.PASSED


@pytest.mark.parametrize(
    ("select", "ignore", "reported"),
    [
        ((), (), {"CK101", "CK106", "CK201"}),
        (("CK1",), (), {"CK101", "CK106"}),
        ((), ("CK1",), {"CK201"}),
        (("CK101",), ("CK1",), {"CK101"}),
        (("CK1",), ("CK101",), {"CK106"}),
        (("CK101",), ("CK101",), set()),
    ],
)
def test_the_longer_of_two_matches_decides(select, ignore, reported):
    policy = Policy(select=select, ignore=ignore)
    found = judge([NOTE, WARNING, ERROR], policy).findings
    assert {f.rule.code for f in found} == reported


def test_an_unknown_code_is_an_error_with_a_suggestion():
    with pytest.raises(UsageError, match="there is no rule 'CK1001'; did you mean CK101"):
        Policy(select=("CK1001",))


def test_families_and_small_letters_are_understood():
    assert resolve_rule_codes("ck101") == ("CK101",)
    assert {"CK110", "CK111", "CK112"} <= set(resolve_rule_codes("ck11"))

"""Every rule is tried in one way, or asks a person and says for what."""

import re
from collections import Counter

import pytest
from rules.fixes import fix_kinds
from rules.fixes.fix_kinds import PROSE

from ckptool.rules import RULES

TWICE = {"CK209", "CK225", "CK310", "CK316"}
"""Rules whose fix is a command in some cases and code in others, or both."""


def test_every_rule_is_tried_or_asks_a_person():
    kinds = (
        *(fix_kinds.COMMANDS, fix_kinds.STATEMENTS, fix_kinds.SOURCES, fix_kinds.BUFFER_LINES),
        *(fix_kinds.RUN_LINES, fix_kinds.OWN_TESTS, fix_kinds.POLICY, fix_kinds.LOOKS, PROSE),
        *(fix_kinds.CHAIN, fix_kinds.FOLDER, fix_kinds.TRAINING),
    )
    counts = Counter(code for kind in kinds for code in kind)
    assert counts.keys() == RULES.keys()
    assert {code for code, count in counts.items() if count > 1} == TWICE


@pytest.mark.parametrize("code", sorted(RULES))
def test_the_page_of_a_rule_reads_without_facts(code):
    """`ckptool rule` showed COMMAND, REMEDYin, KEYWHERETIMES and "it depends on the facts"."""
    rule = RULES[code]
    assert not re.search(r"\b(COMMAND|REMEDY|ADVICE|CODE)|depends on the facts", rule.general_fix)
    clauses = re.findall(r"\{\w+\}(?=\{)", rule.general_summary or rule.message)
    assert not re.search(r"[a-z.][A-Z]{3}|\{|\}", rule.general_message), clauses


@pytest.mark.parametrize("code", sorted(PROSE))
def test_the_page_says_why_no_line_can_be_pasted(code):
    assert re.search(r"[Oo]nly |unpacks it|the line to change", RULES[code].why), RULES[code].why


@pytest.mark.parametrize("code", sorted(PROSE))
def test_the_fix_itself_says_why_no_command_does_it(code):
    assert re.search(r"No ckptool command .*: only ", RULES[code].general_fix)


def test_few_fixes_are_prose():
    assert len(PROSE) <= 2

"""What follows `fix:` can be pasted line by line."""

import shlex

import pytest

from ckptool.render import RenderOptions
from ckptool.render.blocks import ProblemCard, ProblemLine, ProblemsBlock
from ckptool.render.table import _iter_problems_lines
from ckptool.render.text import split_commands

COMMAND = "ckptool migrate a.pth -o b.pth -m net:Net --rename 'a.*=b.*'"


def print_fix(fix: str, width: int, **fields: str) -> list[str]:
    card = ProblemCard("error", "CK209", "", (ProblemLine("wrong"),), (), fix, **fields)
    block = ProblemsBlock("", "1 error", (card,))
    return [line.strip() for line in _iter_problems_lines(block, RenderOptions(width=width))][2:]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("rest", ["", ".", "; or in code: x = 1", ". Otherwise, train it again."])
def test_a_command_is_alone_at_the_end_of_its_line(width, rest):
    lines = print_fix(f"Migrate the file: {COMMAND}{rest}", width)
    (line,) = [line for line in lines if "ckptool" in line]
    assert line.endswith(COMMAND)
    assert shlex.split(line[line.index("ckptool") :])[-1] == "a.*=b.*"
    remainder = rest.lstrip(" .;")
    assert " ".join(lines[lines.index(line) + 1 :]) == remainder


def test_a_command_in_a_sentence_stays_in_it():
    text = "Run `ckptool convert a.pth -o b.pth`, or ckptool init, which asks."
    assert split_commands(text) == ((False, text),)
    assert " ".join(print_fix(text, 200)) == f"fix: {text}"


def test_the_fix_of_one_key_among_several_names_it():
    (line,) = print_fix("Drop it.", 200, fixed_key="a.b")
    assert line == "fix of `a.b` (-v shows all): Drop it."

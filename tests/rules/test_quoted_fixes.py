"""Keys come from files that nobody trusts, and fixes are pasted: each is one word, one string."""

import ast
import re
import shlex
import subprocess

import pytest
import torch
from files import save
from hypothesis import given
from hypothesis import strategies as st

import ckptool
from ckptool.config import GIVEN_WORDS, GivenWords
from ckptool.phrases import quote_python, quote_shell
from ckptool.rules import RULES
from ckptool.rules.fixes.commands import format_repeated_command

HOSTILE_KEYS = (
    "x;curl e|sh",
    '"];import os;os.system("id");x["',
    "$(id)",
    "`id`",
    "a'b",
    'a"b',
    "a\\",
    "a\nb",
    "\x1b[31m",
    "--force",
    "{0}",
    "{key}",
)
QUOTED_BEFORE = {"command", "path", "at", "remedy", "advice", "plan", "code", "where", "lines"}
"""Facts that hold a command or code, whose parts were quoted when it was made.

CK102 names an attribute of the class itself, which is an identifier."""


@given(st.text())
def test_a_python_string_is_the_key(key: str) -> None:
    code = quote_python(key)
    assert ast.literal_eval(code) == key
    assert code.isprintable()


@pytest.mark.process
@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_a_shell_word_is_the_key(key: str) -> None:
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s.' {quote_shell(key)}"], capture_output=True, check=True
    )
    assert shown.stdout.decode() == f"{key}."
    assert quote_shell(key).isprintable()


@pytest.mark.parametrize("code", sorted(RULES))
def test_a_fix_quotes_every_fact_in_code_and_in_commands(code: str) -> None:
    fix = RULES[code].fix
    commands = " ".join(re.findall(r"(?:ckptool \w+|--\w+)[^;,`]*", fix))
    python = " ".join(re.findall(r"\[[^\]]*\]|\w+\([^)]*\)", fix))
    bare = {*re.findall(r"\{(\w+)\}", commands), *re.findall(r"[\[(\"]\{(\w+)\}", python)}
    assert bare <= QUOTED_BEFORE | ({"name"} if code == "CK102" else {"before"})


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_a_pasted_line_names_the_key_and_does_nothing_else(key: str, tmp_path) -> None:
    path = save(tmp_path / "a.pth", {key: torch.ones(2, 3).t()})
    (fix,) = (f.fix for f in ckptool.inspect(path).findings if f.code == "CK312")
    (statement,) = ast.parse(fix).body
    state_dict = {key: torch.ones(2, 3).t()}
    exec(compile(ast.Module([statement], []), "fix", "exec"), {"state_dict": state_dict})
    assert list(state_dict) == [key]
    assert state_dict[key].is_contiguous()


def test_a_file_whose_name_begins_with_a_hyphen_is_no_option(run_command, tmp_path) -> None:
    """`ckptool convert -a.pth -o ...` ended with "no such option '-a'"."""
    optimizer = torch.optim.SGD([torch.ones(1)])
    training = {"model": {"w": torch.ones(2)}, "optimizer": optimizer.state_dict()}
    save(tmp_path / "-a.pth", training | {"broken": {"w": torch.tensor([float("nan")])}})
    found = run_command("gate", "--", "-a.pth", cwd=tmp_path).out
    commands = re.findall(r"ckptool (?:convert|diff) [^\n]*", found)
    log = 'torch.load("-a.pth")\nRuntimeError: PytorchStreamReader failed reading zip archive: x'
    explained = run_command("explain", log, cwd=tmp_path).out
    commands += re.findall(r"ckptool inspect [^\n]*", explained)
    assert {command.split()[1] for command in commands} == {"convert", "diff", "inspect"}
    save(tmp_path / "EARLIER", training)
    for command in commands:
        ran = run_command(*shlex.split(command)[1:], cwd=tmp_path)
        assert "no such option" not in ran.err
        assert ran.code in {0, 1}, (command, ran)


def test_a_repeated_command_gets_its_options_before_what_follows_the_hyphens() -> None:
    words = GivenWords(command=("ckptool", "inspect", "--", "-a.pth"))
    token = GIVEN_WORDS.set(words)
    try:
        assert format_repeated_command("--deep") == "ckptool inspect --deep -- -a.pth"
    finally:
        GIVEN_WORDS.reset(token)

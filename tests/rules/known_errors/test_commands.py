"""Every command that an explanation prints is one of the command line; every code is Python."""

import ast
import shlex

import click
import pytest
from rules.known_errors.error_texts import QUOTED, REAL

from ckptool.cli import main
from ckptool.rules.known_errors import KNOWN_ERRORS
from ckptool.rules.known_errors.explain import explain_log
from ckptool.rules.known_errors.key_patterns import KEY_PATTERNS
from ckptool.rules.known_errors.known_error import Advice, ErrorFacts, fill_advice
from ckptool.rules.known_errors.shape_patterns import SHAPE_PATTERNS

WORDS = {
    **ErrorFacts("runs/my model.ckpt", "pkg.models:Net(depth=3)", ("-k", "n=1")).words,
    **dict.fromkeys(("key", "first", "second", "cause", "type", "name", "count", "layers"), "x"),
    **dict.fromkeys(("file_rows", "module_rows", "number", "old", "new", "module_form"), "3"),
    **dict.fromkeys(("path", "folder", "place", "prefix", "attribute"), "a b"),
    **dict.fromkeys(("file_form", "file_shape", "module_shape", "others", "keys", "side"), "y"),
    "attribute": "module",
    "module": "__main__",
    "target": "model.encoder",
    "code": '("a",)',
    "mapping": '{"a.": "b."}',
    "options": "--rename 'a.*=b.*'",
}
BLOCKS = {entry.name: entry for entry in (*KNOWN_ERRORS, *KEY_PATTERNS, *SHAPE_PATTERNS)}


@pytest.fixture(autouse=True)
def _placeholder_folder(tmp_path, monkeypatch):
    """The folder that stands for the user's base model: options look whether theirs is there."""
    (tmp_path / "BASE_FOLDER").mkdir()
    monkeypatch.chdir(tmp_path)


def check_advice(advice: Advice) -> None:
    """Parse the command as its command line does, without running it; compile the code."""
    words = shlex.split(advice.command)
    if words[:1] == ["ckptool"]:
        context = click.Context(main, info_name="ckptool", obj={})
        _, command, rest = main.resolve_command(context, words[1:])
        assert command is not None
        with command.make_context(words[1], list(rest), parent=context):
            pass
    if advice.code:
        ast.parse(advice.code)
    assert not (advice.command and advice.code)


@pytest.mark.parametrize("name", BLOCKS)
def test_of_a_block(name):
    for advice in fill_advice(BLOCKS[name].advice, WORDS):
        check_advice(advice)


@pytest.mark.parametrize("case", [*REAL, *QUOTED])
def test_of_an_explained_error(case, tmp_path):
    text = REAL[case][0](tmp_path) if case in REAL else QUOTED[case][0]
    errors = explain_log(text)
    assert errors
    for error in errors:
        assert error.explanation.advice
        for advice in error.explanation.advice:
            check_advice(advice)
            assert not {"{", "}"} & {*advice.text}


def test_a_path_of_a_traceback_is_in_the_command():
    text = (
        "Traceback (most recent call last):\n"
        '  File "eval.py", line 3, in <module>\n'
        '    model = torch.load("runs/my run/last.pth")\n'
        "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central"
        " directory"
    )
    (error,) = explain_log(text)
    assert error.explanation.advice[0].command == "ckptool inspect 'runs/my run/last.pth'"

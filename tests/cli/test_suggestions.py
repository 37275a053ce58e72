"""What an error suggests for a mistyped word runs, or names what is there."""

import re
import shlex

import pytest
import torch


@pytest.fixture
def folder(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "my model.pth")
    (tmp_path / "train.py").write_text("print('trained')\n")
    return tmp_path


@pytest.mark.parametrize("word", ["my model.pth", "train.py"])
def test_a_file_in_the_place_of_a_command(folder, run_command, word):
    """All commands were listed, and no word about the file."""
    ran = run_command(word, cwd=folder)
    assert ran.code == 2
    command = re.search(r"did you mean (ckptool .*)\?", ran.err)
    assert command is not None
    assert run_command(*shlex.split(command[1])[1:], cwd=folder).code == 0


def test_a_script_in_the_place_of_a_command_to_run(folder, run_command):
    """It said "No such file or directory" of a file that was there."""
    ran = run_command("run", "--", "train.py", "--lr", "1 e", cwd=folder)
    assert ran.code == 2
    command = ran.err.partition("a script: ")[2]
    assert shlex.split(command) == ["ckptool", "run", "--", "python", "train.py", "--lr", "1 e"]
    assert run_command(*shlex.split(command)[1:], cwd=folder).code == 0


def test_a_word_of_the_names_of_rules(run_command):
    """`ckptool rule missing` said only that there is no such rule."""
    ran = run_command("rule", "missing parameter")
    assert ran.code == 2
    (code,) = re.findall(r"did you mean (CK\d+) missing-parameter\?", ran.err)
    assert run_command("rule", code).out.startswith(f"{code} missing-parameter")
    assert "did you mean" not in run_command("rule", "nan").err


def test_a_link_to_nowhere_is_named(folder, run_command):
    (folder / "last.pth").symlink_to("epoch-9.pth")
    ran = run_command("inspect", "last.pth", cwd=folder)
    assert "last.pth: is a symbolic link to epoch-9.pth, which does not exist" in ran.err


@pytest.mark.parametrize("command", ["convert", "migrate"])
def test_standard_input_where_it_is_not_read(folder, run_command, command):
    """It said "no such file" of `-`."""
    ran = run_command(command, "-", "-o", "new.pth", cwd=folder)
    assert (ran.code, "save it to a file first" in ran.err) == (2, True)


def test_a_file_that_is_given_twice(folder, run_command):
    """It said "a.pth and a.pth would both be written as a: convert them one by one"."""
    ran = run_command("convert", "my model.pth", "my model.pth", "-o", "new", cwd=folder)
    assert ran.code == 2
    assert "my model.pth: is given twice" in ran.err
